"""The leaves of a checkpoint, read from its files and checked."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from solstice._errors import CheckpointError
from solstice._numbers import dtype_of
from solstice._paths import check_regular
from solstice._stored import Stored, data_sharding_of, is_consistent, num_devices, to_host
from solstice.checkpoint import _orbax
from solstice.checkpoint._files import (
    ARRAYS,
    MANIFEST,
    Leaf,
    Manifest,
    checksum,
    from_bytes,
    safetensors,
)
from solstice.checkpoint._peers import Peers


def read_leaves(folder: Path, manifest: Manifest, likes: Mapping[str, Any]) -> dict[str, Stored]:
    """The leaves of these paths, checked.

    Args:
        folder: the checkpoint.
        manifest: its manifest.
        likes: by path, the counterpart that a leaf is for, or None for an array on the host. An
            array of several processes is read where its counterpart lies.
    """
    leaves = manifest.leaves
    split = {name: leaf for name, leaf in leaves.items() if leaf.store}
    arrays = _read_file(folder / ARRAYS)
    if set(arrays) != set(leaves) - set(split):
        raise CheckpointError(f"{folder / ARRAYS} is damaged: its manifest has other arrays")
    whole = {name: _checked(folder, name, array, leaves[name]) for name, array in arrays.items()}
    wanted = {name: like for name, like in likes.items() if name in split}
    return {**whole, **(_read_split(folder, split, wanted) if wanted else {})}


def _read_file(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        check_regular(path, "the file of arrays")
        return safetensors().load_file(path)
    except ImportError:
        raise
    except Exception as error:  # of safetensors, in its own class
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _checked(folder: Path, name: str, array: np.ndarray[Any, Any], about: Leaf) -> Stored:
    try:
        dtype = dtype_of(about.dtype)
        whole = from_bytes(array, dtype, tuple(about.shape))
        fits = list(whole.shape) == about.shape and checksum(whole) == about.sha256
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{folder / ARRAYS} is damaged at `{name}`: {error}") from error
    if not fits:
        raise _damaged(folder / ARRAYS, name)
    return _consistent(folder, name, Stored(about.kind, whole, about.impl))


def _damaged(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged at `{name}`: its checksum is another than when it was written. Take an "
        f"earlier checkpoint"
    )


def _consistent(folder: Path, name: str, stored: Stored) -> Stored:
    if not is_consistent(stored):
        raise CheckpointError(
            f"{folder / MANIFEST} says that `{name}` is of kind {stored.kind!r}, which it cannot "
            f"be as {stored.array.dtype.name}{list(stored.array.shape)} with impl={stored.impl!r}"
        )
    return stored


def _read_split(
    folder: Path, split: Mapping[str, Leaf], likes: Mapping[str, Any]
) -> dict[str, Stored]:
    """Arrays that several processes have saved; all of this run read them together."""
    peers = Peers(f"{folder} is read")
    peers.together(_orbax.check_installed)
    wanted = {name: _wanted(split[name], like) for name, like in likes.items()}
    loaded = _orbax.load(folder, list(split), wanted)
    stored = {
        name: Stored(split[name].kind, cast("Any", array), split[name].impl)
        for name, array in loaded.items()
    }
    peers.together(partial(_check_split, folder, split, stored))
    return stored


def _wanted(about: Leaf, like: Any) -> _orbax.Wanted:
    """How Orbax reads an array: onto the devices of its counterpart if these are several."""
    sharding, dtype = data_sharding_of(like), dtype_of(about.dtype)
    if sharding is None or num_devices(sharding) == 1 or getattr(like, "weak_type", False):
        return np.empty((), dtype)
    return jax.ShapeDtypeStruct(tuple(about.shape), dtype, sharding=sharding)


def _check_split(folder: Path, split: Mapping[str, Leaf], stored: Mapping[str, Stored]) -> None:
    for name, leaf in stored.items():
        about, array = split[name], leaf.array
        if array.dtype != dtype_of(about.dtype) or list(array.shape) != about.shape:
            raise CheckpointError(
                f"{folder / _orbax.FOLDER} is damaged: `{name}` is {array.dtype.name}"
                f"{list(array.shape)} in it, and {about.dtype}{about.shape} in the manifest"
            )
        is_checked = about.sha256 is not None and _is_whole(array)
        if is_checked and checksum(to_host(array)) != about.sha256:
            raise _damaged(folder / _orbax.FOLDER, name)
        _consistent(folder, name, leaf)


def _is_whole(array: np.ndarray[Any, Any] | jax.Array) -> bool:
    """Whether this process can read all of an array."""
    is_numpy = isinstance(array, np.ndarray)
    return is_numpy or array.is_fully_addressable or array.is_fully_replicated
