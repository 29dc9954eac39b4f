"""Saving: write a tree into a hidden folder, then rename it."""

import os
import platform
import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

from solstice._arguments import mapping
from solstice._arguments import names as names_of
from solstice._errors import CheckpointError
from solstice._paths import check_folder, local_path
from solstice._stored import described, stored_leaves, stored_or_array
from solstice.checkpoint._files import (
    ARRAYS,
    FORMAT,
    MANIFEST,
    VERSION,
    safetensors,
    seal,
    with_checksums,
    write_arrays,
)
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
from solstice.checkpoint._rows import RowFiles

_TOLD = ["jax", "jaxlib", "numpy", "equinox", "flax", "dm-haiku", "optax", "solstice-core"]


def save(path: str | PathLike[str], tree: object, *, note: Mapping[str, Any] | None = None) -> Path:
    """`solstice.checkpoint.save("runs/best", exp)`: write a tree, an Experiment for instance.

    The folder `path` then has the arrays in `arrays.safetensors`, by their paths in the tree, and a
    `manifest.json`. It is written under another name, brought to the disk, and renamed: if the
    process dies meanwhile, what was at `path` before is still there. Functions and static fields
    are not saved, but described, so `load` can compare them.

    Args:
        path: a folder, which is replaced if it is a checkpoint or empty.
        tree: a pytree of JAX and NumPy arrays, typed PRNG keys, Python and NumPy numbers, and None.
        note: what JSON takes, kept in the manifest; or the `note` of a `solstice.Snapshot` or of
            another checkpoint, whose `AppendOnly` lists go to files beside it.

    Returns:
        The folder.

    Raises:
        CheckpointError: `path` exists and is not a checkpoint, a leaf does not hold numbers, or
            writing fails.
        ValueError: `path` is a URL, or an array has been deleted.
        ImportError: safetensors is not installed.
        TypeError: `note` holds what JSON does not take.
    """
    return begin(path, tree, note=note)()


def begin(
    path: str | PathLike[str], tree: object, *, note: Mapping[str, Any] | None = None
) -> Callable[[], Path]:
    """`finish = solstice.checkpoint.begin("runs/best", exp)`, then `finish()`: `save` in two parts.

    The first part copies the arrays to a file, one after the other, so that they may be deleted or
    donated afterwards. The second one, `finish()`, brings the file to the disk and renames the
    folder. It may run in a thread. Without it, `sweep` removes the rest.

    Args:
        path: as in `save`.
        tree: as in `save`.
        note: as in `save`.

    Returns:
        A function that completes the checkpoint and returns the folder.

    Raises:
        CheckpointError, ValueError, ImportError: as in `save`.
        TypeError: from `finish()`, if `note` holds what JSON does not take.
    """
    folder = local_path(path, "path")
    note, words = mapping("note", note, '{"epoch": 3}'), described(tree)
    leaves = {name: stored_or_array(name, leaf) for name, leaf in stored_leaves(tree).items()}
    safetensors()  # which reads the file
    with _named(folder):
        _check_replaceable(folder)
        place = real(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        _settle(place)
        new = free_beside(place, "new")
        new.mkdir()
        with _removed_on_error(new):
            entries = write_arrays(new / ARRAYS, leaves)
    return partial(_finish, folder, place, new, {**_manifest(words), "leaves": entries}, note)


@contextmanager
def _named(path: Path) -> Generator[None, None, None]:
    """Within, an error of the disk becomes a CheckpointError that names the checkpoint."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} could not be written: {error}") from error


@contextmanager
def _removed_on_error(folder: Path) -> Generator[None, None, None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _finish(
    path: Path, place: Path, new: Path, manifest: dict[str, Any], note: dict[str, Any]
) -> Path:
    """Completes the hidden folder beside the path, and renames it."""
    old = free_beside(place, "old")
    with _named(path):
        try:
            placed = RowFiles(new, place).placed(note)  # on the disk before the manifest names them
            leaves = with_checksums(new / ARRAYS, manifest["leaves"])
            (new / MANIFEST).write_text(seal({**manifest, "leaves": leaves, "note": placed}))
            for name in (ARRAYS, MANIFEST):
                _to_disk(new / name)
            _to_disk(new)
            if place.exists():
                place.rename(old)  # a rename cannot replace a folder with files in it
            new.rename(place)
            _to_disk(place.parent)  # else a power failure may undo the rename
        finally:
            shutil.rmtree(new, ignore_errors=True)
            finish_renaming(place)
        shutil.rmtree(old, ignore_errors=True)
    return path


def sweep(folder: str | PathLike[str], names: Collection[str] | None = None) -> list[Path]:
    """`solstice.checkpoint.sweep("runs")`: remove half-written leftovers of killed processes.

    Do not call it while another process writes there. Folders with anything but parts of a
    checkpoint stay, whatever their names are.

    Args:
        folder: the folder of the checkpoints.
        names: the checkpoints to clean up, such as `["step-20"]`; all by default.

    Returns:
        The removed paths.

    Raises:
        TypeError: `names` is not a name or several.
    """
    folder, removed = local_path(folder, "folder"), list[Path]()
    chosen = names_of("names", names)
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
        ValueError: `path` is a URL.
        ImportError: safetensors is not installed.
    """
    safetensors()
    folder = local_path(path, "path")
    try:
        check_folder(folder.absolute().parent, who)
    except OSError as error:
        raise CheckpointError(str(error)) from error
    _check_replaceable(folder)


def _check_replaceable(path: Path) -> None:
    """Raises a CheckpointError if `path` is something else, which must not be lost."""
    place = real(path)
    if os.path.lexists(place) and not is_ours(place):
        raise CheckpointError(f"{path} is there and is not a checkpoint: give another path")


def _settle(place: Path) -> None:
    """Cleans up after a process that died here."""
    if any(os.path.lexists(beside(place, what)) for what in ("new", "old")):
        sweep(place.parent, [place.name])


def remove(path: str | PathLike[str]) -> None:
    """`solstice.checkpoint.remove("runs/old")`: remove a checkpoint; of a link, the link alone.

    If the process dies meanwhile, `sweep` removes the rest.

    Raises:
        CheckpointError: it is not a checkpoint, or cannot be removed.
    """
    folder = local_path(path, "path")
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
    return holds_checkpoint(newest(local_path(path, "path")))


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _manifest(words: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "described": dict(words),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """`solstice.checkpoint.versions()["jax"]`: the package versions that a checkpoint records."""
    found = {"python": platform.python_version()}
    for name in _TOLD:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
