"""Paths as users give them: of this machine, with `~` as the home folder."""

import os
import re
from os import PathLike
from pathlib import Path
from urllib.parse import urlsplit

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/|.*://", re.IGNORECASE | re.DOTALL)
"""Also of `Path("gs://x")`, which is "gs:/x". One letter would be a drive of Windows."""


def local_path(given: str | PathLike[str], name: str) -> Path:
    """The path of a file or folder of this machine.

    Args:
        given: what the user gave.
        name: the argument, for the message.

    Raises:
        ValueError: it is a URL, such as "gs://bucket/run".
    """
    words = str(given)  # `os.fspath` of a path in a cloud may copy what is there
    if _SCHEME.match(words):
        raise ValueError(
            f"{name} is {words!r}, and Solstice reads and writes local files alone: write a local "
            f"path, such as {_local(words)!r}. A store that is mounted as a folder is one"
        )
    return Path(os.path.expanduser(os.fspath(given)))  # leaves "~name" where there is no such user


def _local(url: str) -> str:
    """What to write in place of a URL."""
    if url.lower().startswith("file:"):
        return urlsplit(url).path or "runs/a"
    return url.rstrip("/").rsplit("/", 1)[-1].rpartition(":")[2] or "runs/a"
