"""The packages of this repository without installing them: `environment(folder)` for a process."""

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process that imports the sources; `folder` takes their metadata.

    Adapters are found by entry points, which only an installed package has. The metadata of one
    stands in `folder`, first on the path of Python.
    """
    packages = sorted(ROOT.glob("packages/solstice-*"))
    for package in packages:
        _write_metadata(package, folder)
    paths = [*(package / "src" for package in packages), ROOT / "tests/benchmarks"]
    path = os.pathsep.join([str(folder), *map(str, paths), os.environ.get("PYTHONPATH", "")])
    # Without the second, JAX takes most of the memory of a GPU at once, and leaves none for others.
    return {**os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def _write_metadata(package: Path, folder: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
        for group, points in project.get("entry-points", {}).items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
