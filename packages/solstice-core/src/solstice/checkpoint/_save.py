"""Write a tree: into a folder of another name first, which is renamed when it is whole."""

import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

from solstice._arguments import mapping
from solstice._paths import local_path
from solstice.checkpoint._errors import CheckpointError
from solstice.checkpoint._files import (
    ARRAYS,
    FORMAT,
    MANIFEST,
    VERSION,
    as_bytes,
    checksum,
    safetensors,
    seal,
)
from solstice.checkpoint._leaves import Stored, described, stored_leaves, to_stored
from solstice.checkpoint._rows import RowFiles

_TOLD = ["jax", "jaxlib", "numpy", "equinox", "flax", "dm-haiku", "optax", "solstice-core"]


def save(path: str | PathLike[str], tree: Any, *, note: Mapping[str, Any] | None = None) -> Path:
    """`solstice.checkpoint.save("runs/best", exp)`: write a tree, an Experiment for instance.

    The folder `path` then has the arrays in `arrays.safetensors`, by their paths in the tree, and a
    `manifest.json`. It is written under another name, brought to the disk, and renamed: if the
    process dies meanwhile, what was at `path` before is still there. Functions and static fields
    are not saved, but described, so that `load` can tell if they are others.

    Args:
        path: a folder, which is replaced if it is a checkpoint or empty.
        tree: a pytree of JAX and NumPy arrays, typed PRNG keys, Python and NumPy numbers, and None.
        note: what JSON takes, kept in the manifest; or the `note` of a `solstice.Snapshot`, whose
            `AppendOnly` lists go to files beside it.

    Returns:
        The folder.

    Raises:
        CheckpointError: `path` is there and is no checkpoint, a leaf is not of numbers, or the disk
            refuses.
        ValueError: `path` is a URL.
        ImportError: safetensors is not installed.
        TypeError: `note` holds what JSON does not take.
    """
    folder = local_path(path, "path")
    note = mapping("note", note, '{"epoch": 3}')
    stored = {name: to_stored(name, leaf) for name, leaf in stored_leaves(tree).items()}
    return write(folder, stored, described(tree), note)


def write(
    path: Path, stored: Mapping[str, Stored], words: Mapping[str, str], note: dict[str, Any]
) -> Path:
    """`save`, of what is on the host already."""
    library = safetensors()
    new, old = _beside(path, "new"), _beside(path, "old")
    try:
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _finish_renaming(path)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        arrays = {name: as_bytes(leaf.array) for name, leaf in stored.items()}
        library.save_file(arrays, new / ARRAYS)
        rows = RowFiles(new, path)  # on the disk before the manifest speaks of them
        (new / MANIFEST).write_text(seal(_manifest(stored, words, note), rows))
        for name in (ARRAYS, MANIFEST):
            _to_disk(new / name)
        _to_disk(new)
        if path.exists():
            path.rename(old)
        new.rename(path)
        _to_disk(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} could not be written: {error}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise CheckpointError(f"the checkpoint {path} could not be written: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return path


def sweep(folder: str | PathLike[str]) -> list[Path]:
    """`solstice.checkpoint.sweep("runs")`: remove what processes that died left half-written.

    Not while another process writes there.

    Returns:
        What was removed.
    """
    folder, removed = local_path(folder, "folder"), list[Path]()
    for left in sorted(folder.glob(".*.new")) + sorted(folder.glob(".*.old")):
        path = left.parent / left.name[1:-4]
        _finish_renaming(path)
        if left.exists():
            shutil.rmtree(left)
            removed.append(left)
    return removed


def newest(path: Path) -> Path:
    """Where the checkpoint is: beside its name, if a process died as it was renamed."""
    old = _beside(path, "old")
    return old if not path.exists() and (old / MANIFEST).exists() else path


def check_replaceable(path: Path) -> None:
    """That `path` is a checkpoint, empty, or not there.

    Raises:
        CheckpointError: it is something else, which must not be lost.
    """
    if path.exists() and not (path / MANIFEST).exists() and not _is_empty(path):
        raise CheckpointError(f"{path} is there and is no checkpoint: give another path")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _beside(path: Path, what: str) -> Path:
    return path.parent / f".{path.name}.{what}"


def _finish_renaming(path: Path) -> None:
    """Puts back what was there, if a process died before the new one had its name."""
    where = newest(path)
    if where != path:
        where.rename(path)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _manifest(
    stored: Mapping[str, Stored], words: Mapping[str, str], note: dict[str, Any]
) -> dict[str, Any]:
    leaves = {
        name: {
            "kind": leaf.kind,
            "dtype": leaf.array.dtype.name,
            "shape": list(leaf.array.shape),
            "sha256": checksum(leaf.array),
            **({} if leaf.impl is None else {"impl": leaf.impl}),
        }
        for name, leaf in stored.items()
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "leaves": leaves,
        "described": dict(words),
        "versions": versions(),
        "note": note,
    }


def versions() -> dict[str, str]:
    """`solstice.checkpoint.versions()["jax"]`: of what a checkpoint is told to be made with."""
    found = {"python": platform.python_version()}
    for name in _TOLD:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
