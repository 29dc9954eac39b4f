"""New adapter: the command `python -m solstice.new_adapter toynet` writes an adapter package.

The new package passes the conformance suite, with a toy net in place of the framework: replace the
net, and keep the tests green.
"""

import re
from pathlib import Path
from typing import Any, cast

from solstice._paths import local_path

_TEMPLATE = Path(__file__).parent / "template"


def write_package(name: str, folder: Path) -> Path:
    """`write_package("toynet", Path("."))`: write `./solstice-toynet`, and return its path.

    Args:
        name: the framework's import name: lower-case letters, digits and underscores.
        folder: the parent folder of the package.

    Raises:
        ValueError: `name` has other characters, or `folder` is a URL.
        FileExistsError: the package exists already; nothing is written.
    """
    if not isinstance(cast("Any", name), str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"the name must be of lower-case letters, digits and underscores, as in `toynet`; "
            f"it is {name!r}"
        )
    package = local_path(folder, "folder") / f"solstice-{name.replace('_', '-')}"
    package.mkdir(parents=True)  # raises if it exists, so nothing is overwritten
    for source in sorted(path for path in _TEMPLATE.rglob("*") if path.is_file()):
        if "__pycache__" in source.parts:
            continue
        target = package / _renamed(str(source.relative_to(_TEMPLATE)), name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_renamed(source.read_text(), name))
    return package


def _renamed(text: str, name: str) -> str:
    camel = "".join(part.capitalize() for part in name.split("_"))
    text = text.replace("solstice-toynet", f"solstice-{name.replace('_', '-')}")
    return text.replace("toynet", name).replace("Toynet", camel)
