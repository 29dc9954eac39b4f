"""The pip command that installs a package of ours. None is on a package index."""

import json
import shlex
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

_PACKAGES = "packages"
"""The folder of our packages in a clone."""


def pip_install(package: str, *options: str) -> str:
    """`"pip install <clone>/packages/solstice-haiku"`: the command for a package of ours.

    Without the clone from which the core was installed, the command is for any clone.
    """
    command = " ".join(["pip install", *options])
    for core in _sources():
        folder = core.parent / package
        if core.parent.name == _PACKAGES and (folder / "pyproject.toml").exists():
            return f"{command} {shlex.quote(str(folder))}"
    return f"in a clone of Solstice, {command} ./{_PACKAGES}/{package}"


def _sources() -> list[Path]:
    """The folders from which the core may have been installed: of pip's record, of this file."""
    try:
        recorded = _recorded(distribution("solstice-core"))
    except PackageNotFoundError:
        recorded = []
    return [*recorded, Path(__file__).parents[3]]


def _recorded(core: Distribution) -> list[Path]:
    """The folder that pip has recorded as PEP 610 says."""
    try:
        record: dict[str, str] = json.loads(core.read_text("direct_url.json") or "{}")
        url = urlsplit(record["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [Path(unquote(url.path))] if url.scheme == "file" else []
