"""Facts about the process of a run: versions, git, the command line."""

import os
import platform
import socket
import subprocess
import sys
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from solstice import checkpoint

_PATIENCE = 10.0
"""Seconds to wait for git, which may read a large repository on a slow disk."""


def facts() -> dict[str, Any]:
    """The facts, by the names of the fields of `RunInfo`."""
    return {
        "versions": {**checkpoint.versions(), **_own_versions()},
        "platform": platform.platform(),
        "process": {"pid": os.getpid(), "host": socket.gethostname()},
        "git": _git(),
        "command": list(sys.orig_argv),
    }


@cache
def _own_versions() -> dict[str, str]:
    """The versions of all installed packages of ours, and of the adapters of others."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.name or ""  # metadata may be damaged
        if name.startswith("solstice-"):
            found.setdefault(name, distribution.version)  # the first one on the path is imported
    return found


def _git() -> dict[str, Any] | None:
    """The commit of the script, or else of the working directory."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    places = [Path(script).absolute().parent] if script else []
    for place in [*places, Path.cwd()]:
        # A look at the folders is faster than to start git.
        if any((folder / ".git").exists() for folder in (place, *place.parents)):
            commit = _output(place, "rev-parse", "HEAD")
            if commit:
                # Not of new files, because the folder of the run itself may be one.
                changes = _output(place, "status", "--porcelain", "--untracked-files=no")
                is_dirty = None if changes is None else bool(changes)
                return {"commit": commit, "is_dirty": is_dirty}
    return None


def _output(folder: Path, *arguments: str) -> str | None:
    """The output of git; None if it fails, or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # another git may run in the terminal
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
