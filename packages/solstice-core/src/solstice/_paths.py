"""Paths given by users: local files and folders, with `~` for the home folder."""

import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/|.*://", re.IGNORECASE | re.DOTALL)
"""Matches `Path("gs://x")` too, which is "gs:/x". A single letter is a drive of Windows."""


def local_path(given: str | PathLike[str], name: str) -> Path:
    """`local_path("~/runs/a", "path")`: the path of a local file or folder.

    Args:
        given: the user's path.
        name: the name of the argument, for the message.

    Raises:
        TypeError: it is not a path.
        ValueError: it is empty, or a URL, such as "gs://bucket/run".
    """
    if not isinstance(cast("Any", given), str | PathLike):
        raise TypeError(f"{name} must be a path, such as 'runs/a'; it is {given!r:.60}")
    if str(given) == "" or "\0" in str(given):
        raise ValueError(f"{name} must be a path, such as 'runs/a'; it is {str(given)!r}")
    words = str(given)  # not `os.fspath`, which may download a cloud path
    if _SCHEME.match(words):
        raise ValueError(
            f"{name} is {words!r}, and Solstice reads and writes local files only (but checkpoints "
            f"also at gs:// and s3://): write a local path, such as {_local(words)!r}, or the "
            f"folder where the store is mounted"
        )
    return Path(os.path.expanduser(os.fspath(given)))  # keeps "~name" if there is no such user


def check_regular(path: Path, name: str) -> None:
    """Raises an OSError if a path exists and is not a file: reading a FIFO or device may hang.

    Args:
        path: the path to read or write.
        name: its name in the message.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = next(word for test, word in _KINDS if test(mode))
            raise OSError(f"{name} {path} is not a file: it is {kind}")


_KINDS: list[tuple[Callable[[int], bool], str]] = [
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (lambda _: True, "a device"),
]


def check_folder(path: Path, who: str) -> None:
    """Checks that files can be written into a folder, which may not exist yet.

    Args:
        path: the folder, absolute.
        who: the writer, for the message.

    Raises:
        NotADirectoryError: the path, or a parent of it, is a file.
        PermissionError: this process may not write there.
    """
    place = Path(os.path.realpath(path))  # a link may lead to a folder that does not exist yet
    there = next(each for each in (place, *place.parents) if os.path.lexists(each))
    if not there.is_dir():
        raise NotADirectoryError(
            f"{who} writes into the folder {path}, and {there} is not a folder: give another path"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{who} writes into the folder {path}, and this process may not write to {there}: "
            f"give another path"
        )


def check_file(path: Path, who: str) -> None:
    """Checks that a file can be written, which may not exist yet.

    Args:
        path: the file, absolute.
        who: the writer, for the message.

    Raises:
        IsADirectoryError: the path is a folder.
        NotADirectoryError: a parent of the path is a file.
        PermissionError: this process may not write there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{who} writes a file, and {path} is a folder: name a file in it")
    check_folder(path.parent, who)


def free_name(path: Path) -> Path:
    """The first unused name of the form `a-1.csv`, `a-2.csv` for `a.csv`."""
    index = 1
    while (free := path.with_stem(f"{path.stem}-{index}")).exists():
        index += 1
    return free


def _local(url: str) -> str:
    """A local path to suggest in place of a URL."""
    if url.lower().startswith("file:"):
        return urlsplit(url).path or "runs/a"
    return url.rstrip("/").rsplit("/", 1)[-1].rpartition(":")[2] or "runs/a"
