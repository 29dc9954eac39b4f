"""Paths as users give them: of this machine, with `~` as the home folder."""

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
"""Also of `Path("gs://x")`, which is "gs:/x". One letter would be a drive of Windows."""


def local_path(given: str | PathLike[str], name: str) -> Path:
    """The path of a file or folder of this machine.

    Args:
        given: what the user gave.
        name: the argument, for the message.

    Raises:
        TypeError: it is not a path.
        ValueError: it is empty, or a URL, such as "gs://bucket/run".
    """
    if not isinstance(cast("Any", given), str | PathLike):
        raise TypeError(f"{name} must be a path, such as 'runs/a'; it is {given!r:.60}")
    if str(given) == "" or "\0" in str(given):
        raise ValueError(f"{name} must be a path, such as 'runs/a'; it is {str(given)!r}")
    words = str(given)  # `os.fspath` of a path in a cloud may copy what is there
    if _SCHEME.match(words):
        raise ValueError(
            f"{name} is {words!r}, and Solstice reads and writes local files alone: write a local "
            f"path, such as {_local(words)!r}. A store that is mounted as a folder is one"
        )
    return Path(os.path.expanduser(os.fspath(given)))  # leaves "~name" where there is no such user


def check_regular(path: Path, name: str) -> None:
    """Raises an OSError on what is there and is not a file: reading a FIFO or a device may hang.

    Args:
        path: what is to be read or written.
        name: what it is, for the message.
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
    """That files can be written into a folder, which need not be there yet.

    Args:
        path: the folder, absolute.
        who: writes there, for the message.

    Raises:
        NotADirectoryError: a file is in the way.
        PermissionError: it must not be written to.
    """
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise NotADirectoryError(
            f"{who} writes into the folder {path}, and {there} is not a folder: give another path"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{who} writes into the folder {path}, and this process must not write to {there}: "
            f"give another path"
        )


def check_file(path: Path, who: str) -> None:
    """That a file can be written, which need not be there yet.

    Args:
        path: the file, absolute.
        who: writes it, for the message.

    Raises:
        IsADirectoryError: a folder has its name.
        NotADirectoryError: a file is in the way.
        PermissionError: it must not be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{who} writes a file, and {path} is a folder: name a file in it")
    check_folder(path.parent, who)


def _local(url: str) -> str:
    """What to write in place of a URL."""
    if url.lower().startswith("file:"):
        return urlsplit(url).path or "runs/a"
    return url.rstrip("/").rsplit("/", 1)[-1].rpartition(":")[2] or "runs/a"
