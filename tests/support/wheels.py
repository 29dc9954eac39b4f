"""Packages that are written and installed as a third party's would be."""

import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

TAG = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(
    folder: Path,
    name: str,
    source: str,
    claims: Iterable[tuple[str, str, str]] = (),
    *,
    points: str = "",
    requires: str = "",
) -> Path:
    """`name` 0.1: a module with a source, whose entry points are (group, prefix, class).

    `points` are lines of its entry_points.txt as they are, and `requires` is what it depends on.
    """
    module = name.replace("-", "_")
    info = f"{module}-0.1.dist-info"
    lines = [f"[{group}]\n{prefix} = {module}:{cls}\n" for group, prefix, cls in claims]
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n{needs}",
        f"{info}/WHEEL": TAG,
        f"{info}/entry_points.txt": "\n".join([*lines, points]),
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = folder / f"{module}-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def install(wheels: Iterable[Path], folder: Path) -> None:
    """Installs wheels into a folder that is to stand on the path of Python."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--disable-pip-version-check", "--target", str(folder), *map(str, wheels)]
    subprocess.run(command, check=True)
