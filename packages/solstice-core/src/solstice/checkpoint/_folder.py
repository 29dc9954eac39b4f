"""Folders of checkpoints: what may be replaced or removed, and cleaning up after a kill."""

import os
import shutil
from collections.abc import Collection
from os import PathLike
from pathlib import Path

import jax

from solstice._arguments import names as names_of
from solstice._errors import CheckpointError
from solstice._paths import check_folder
from solstice.checkpoint import _bucket
from solstice.checkpoint._files import safetensors
from solstice.checkpoint._orbax import check_installed
from solstice.checkpoint._peers import Peers
from solstice.checkpoint._places import (
    beside,
    finish_renaming,
    free_beside,
    holds_checkpoint,
    is_ours,
    left_in,
    newest,
    real,
)


def sweep(folder: str | PathLike[str], names: Collection[str] | None = None) -> list[Path]:
    """`solstice.checkpoint.sweep("runs")`: remove half-written leftovers of killed processes.

    Do not call it while another process writes there. Folders with anything but parts of a
    checkpoint stay, whatever their names are. In several processes of `jax.distributed`, all call
    it, and the first one does it.

    Args:
        folder: the folder of the checkpoints.
        names: the checkpoints to clean up, such as `["step-20"]`; all by default.

    Returns:
        The removed paths.

    Raises:
        TypeError: `names` is not a name or several.
    """
    place, chosen = _bucket.place(folder, "folder"), names_of("names", names)
    peers = Peers(f"{folder} is cleaned up")
    removed = peers.first(lambda: [*map(str, sweep_alone(place, chosen))])
    return [_bucket.place(path, "folder") for path in removed]


def sweep_alone(folder: Path, chosen: Collection[str] | None) -> list[Path]:
    """`sweep` by this process, without the others."""
    if _bucket.is_url(folder):
        return _bucket.sweep(folder, chosen)
    removed: list[Path] = []
    for left, path, what in left_in(folder):
        if chosen is None or path.name in chosen:
            finish_renaming(path)
            if _is_waste(left, path, what, is_named=chosen is not None):
                shutil.rmtree(left)
                removed.append(left)
    return removed


def _is_waste(left: Path, path: Path, what: str, *, is_named: bool) -> bool:
    """Whether a leftover of a checkpoint can be removed."""
    is_beside = holds_checkpoint(path)
    if not is_ours(left) or (what == "old" and not is_beside):
        return False
    return is_named or is_beside or any(left.iterdir())  # an empty folder may be of anybody


def check_writable(path: str | PathLike[str], who: str = "solstice.checkpoint.save") -> None:
    """`solstice.checkpoint.check_writable("runs/a")`: raise now if `save` cannot write there.

    Call it at the start of a run that saves at its end.

    Args:
        path: as in `save`.
        who: who will save, for the message.

    Raises:
        CheckpointError: `path` exists and is not a checkpoint, a file is in the way, or this
            process may not write there.
            In a bucket: it cannot be listed, or there are several processes.
        ValueError: `path` is a URL other than of "gs://" or "s3://".
        ImportError: safetensors is not installed, or Orbax in several processes, or for a bucket
            the extra `cloud`.
    """
    folder = _bucket.place(path, "path")
    if _bucket.is_url(folder):
        _bucket.check_replaceable(folder)
        safetensors()
        return
    check_libraries()
    try:
        check_folder(folder.absolute().parent, who)
    except OSError as error:
        raise CheckpointError(str(error)) from error
    check_replaceable(folder)


def check_libraries() -> None:
    """Raises an ImportError if a library is missing that a save needs."""
    safetensors()
    if jax.process_count() > 1:
        check_installed()


def check_replaceable(path: Path) -> None:
    """Raises a CheckpointError if `path` is something else, which must not be lost."""
    place = real(path)
    if os.path.lexists(place) and not is_ours(place):
        raise CheckpointError(f"{path} is there and is not a checkpoint: give another path")


def settle(place: Path) -> None:
    """Cleans up after a process that died here."""
    if any(os.path.lexists(beside(place, what)) for what in ("new", "old")):
        sweep_alone(place.parent, [place.name])


def remove(path: str | PathLike[str]) -> None:
    """`solstice.checkpoint.remove("runs/old")`: remove a checkpoint; of a link, the link alone.

    If the process dies meanwhile, `sweep` removes the rest. In several processes of
    `jax.distributed`, all call it, and the first one does it.

    Raises:
        CheckpointError: it is not a checkpoint, or cannot be removed.
    """
    folder = _bucket.place(path, "path")
    Peers(f"{folder} is removed").first(lambda: remove_alone(folder))


def remove_alone(folder: Path) -> None:
    """`remove` by this process, without the others."""
    if _bucket.is_url(folder):
        _bucket.remove(folder)
        return
    if not holds_checkpoint(folder):
        raise CheckpointError(f"{folder} is not a checkpoint, and was not removed")
    try:
        if folder.is_symlink():
            folder.unlink()
            return
        hidden = free_beside(folder, "new")  # which nothing takes for a checkpoint
        folder.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        raise CheckpointError(f"the checkpoint {folder} could not be removed: {error}") from error


def exists(path: str | PathLike[str]) -> bool:
    """`solstice.checkpoint.exists("runs/best")`: is a checkpoint there, perhaps damaged?"""
    place = _bucket.place(path, "path")
    if _bucket.is_url(place):
        return _bucket.newest_version(place) is not None
    return holds_checkpoint(newest(place))
