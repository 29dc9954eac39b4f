"""Paths of a checkpoint while it is written, and the test for hidden folders of ours."""

import os
import re
from itertools import chain, count
from pathlib import Path

from solstice.checkpoint._files import ARRAYS, MANIFEST
from solstice.checkpoint._orbax import FOLDER

_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<what>new|old)(-[0-9]+)?", re.DOTALL)
_HEAD = b'{"sha256": "'
_PART = re.compile(rf"{re.escape(ARRAYS)}|rows-[0-9]+\.jsonl|{re.escape(FOLDER)}(\..+)?")


def real(path: Path) -> Path:
    """The target of a path: saving replaces the target of a link, not the link."""
    return Path(os.path.realpath(path))


def holds_checkpoint(folder: Path) -> bool:
    """Whether the folder has a manifest of ours, perhaps damaged. Other tools use that name too."""
    manifest = folder / MANIFEST
    try:
        if not manifest.is_file():
            return False
        with manifest.open("rb") as file:
            return file.read(len(_HEAD)) == _HEAD or (folder / ARRAYS).is_file()
    except OSError:  # somebody else's, whom we may not read
        return False


def is_ours(folder: Path) -> bool:
    """Whether it is a checkpoint, or holds only parts of one."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return holds_checkpoint(folder) or all(map(_is_part, folder.iterdir()))


def _is_part(path: Path) -> bool:
    """Whether `save` writes such a file before the manifest has its head."""
    if path.name == MANIFEST:
        return path.stat().st_size == 0
    return _PART.fullmatch(path.name) is not None


def left_in(folder: Path) -> list[tuple[Path, Path, str]]:
    """Leftovers of killed processes: each path, its checkpoint, and "new" or "old".

    The names alone are looked at.
    """
    found: list[tuple[Path, Path, str]] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _LEFT.fullmatch(path.name)
        if match is not None:
            found.append((path, folder / match["name"], match["what"]))
    return found


def free_beside(path: Path, what: str) -> Path:
    """A free hidden name: `.a.new`, else `.a.new-2`, and so on."""
    names = (beside(path, f"{what}-{index}") for index in count(2))
    return next(p for p in chain([beside(path, what)], names) if not os.path.lexists(p))


def beside(path: Path, what: str) -> Path:
    """The hidden name of what is "new" or "old"."""
    return path.parent / f".{path.name}.{what}"


def newest(path: Path) -> Path:
    """The path of the checkpoint: a hidden one if a process died during the rename."""
    if path.exists():
        return path
    place = real(path)
    old = [left for left, of, what in left_in(place.parent) if of == place and what == "old"]
    whole = [left for left in old if not left.is_symlink() and holds_checkpoint(left)]
    return whole[0] if whole else path


def finish_renaming(path: Path) -> None:
    """Restores the old checkpoint if a process died before the rename of the new one."""
    where = newest(path)
    if where != path:
        where.rename(real(path))
