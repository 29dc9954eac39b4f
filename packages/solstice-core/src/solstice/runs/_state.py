"""The state of a run by its folder: how it ended, or whether it still runs."""

import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from solstice import checkpoint
from solstice.callbacks import is_locked
from solstice.checkpoint import CheckpointError, Folder, of_newest_run
from solstice.runs._info import RunInfo


def state_of(folder: Path, info: RunInfo) -> str:
    """How a run ended; else "running" or "killed", or the time of its newest write."""
    if info.ended is not None:
        return info.ended
    is_alive = is_locked(folder)  # by Checkpoint, also from another host
    if is_alive is None:
        is_alive = _is_process(info.process)
    if is_alive is None:
        return f"no news since {moment(info.updated_at)}"
    return "running" if is_alive else "killed"


def resumable(folder: Path) -> str | None:
    """The name of the newest checkpoint, from which the run can be resumed; None without one."""
    try:
        found = of_newest_run(Folder(folder).saved())
    except CheckpointError:  # the bucket does not answer
        return None
    return found[-1].path.name if found else None


def moment(seconds: float) -> str:
    """A time in seconds since 1970, such as "2026-11-28 14:05", in the zone of this machine."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # NaN, or of no year
        return "?"


def _is_process(process: Mapping[str, str | int]) -> bool | None:
    """Whether the process of a run exists; None if that cannot be known here."""
    pid = process.get("pid")
    is_here = process.get("host") == socket.gethostname()
    # On Windows, `os.kill` ends the process.
    if not is_here or type(pid) is not int or pid <= 0 or sys.platform == "win32":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user
        return True
    return True


def folders_in(folder: Path, depth: int = 4) -> list[Path]:
    """The folders that may be runs: this one, and those in it down to a depth."""
    if checkpoint.is_url(folder):
        return [folder, *(folder / name for name in checkpoint.names_in(folder))]
    found = [folder]
    if depth > 0:
        with suppress(OSError):  # a folder of another user
            for path in sorted(filter(_may_have_runs, folder.iterdir())):
                found += folders_in(path, depth - 1)
    return found


def _may_have_runs(path: Path) -> bool:
    """Whether it is a folder of the user, not a part of a run, and not a link, which may cycle."""
    name = path.name
    is_part = name.startswith(".") or name.removeprefix("step-").isdigit() or name == "trace"
    return not is_part and not path.is_symlink() and path.is_dir()
