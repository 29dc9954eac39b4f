"""Which data a data set has, so that a run that is resumed sees whether they are the same."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from solstice import _tree
from solstice.data._arrays import is_numeric
from solstice.data._batches import Batches

_WHOLE = 2**26
"""Bytes of arrays up to which all are read, once in a run that is saved: that takes 0.1 s."""

_SAMPLE = 2**12
"""Numbers of a larger array that are read, evenly spaced, and as many at both ends; also arrays
of a larger list."""


def identity_of(data: Any) -> dict[str, Any]:
    """What can be said of a data set without reading it; the arrays where they are in memory."""
    if isinstance(data, Batches):
        return {"kind": "arrays", "describe": data.describe(), "checksum": checksum(data.arrays)}
    if type(data) in (list, tuple):  # and not what reads a batch when it is asked for one
        return {"kind": "list", "checksum": checksum(data)}
    return {}


def differences(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of two identities differs, in words; of data sets of two kinds, nothing is known."""
    if was.get("kind") != now.get("kind"):  # the same batches, if they are, in another way
        return []
    old, new = was.get("describe", {}), now.get("describe", {})
    found = [
        f"{name} had {key}={old[key]}, and has {key}={new[key]}"
        for key in new
        if key in old and old[key] != new[key]
    ]
    if was.get("checksum") != now.get("checksum"):
        found.append(
            f"the arrays of {name} are not those of the saved run: their checksum was "
            f"{was.get('checksum')}, and is {now.get('checksum')}"
        )
    return found


def checksum(tree: Any) -> str:
    """A checksum of the numbers in a tree of arrays, of a large tree of a sample of them."""
    arrays = [array for leaf in _tree.leaves(tree) if is_numeric(array := _as_array(leaf))]
    is_whole = sum(array.nbytes for array in arrays) <= _WHOLE
    digest = hashlib.sha256(f"{len(arrays)}".encode())
    for array in arrays if is_whole else _spaced(arrays):
        seen = _as_seen(array if is_whole else _sample(array))
        digest.update(f" {seen.dtype} {array.shape} ".encode())
        numbers: Any = np.ascontiguousarray(seen).reshape(-1).view(np.uint8)
        digest.update(numbers)
    return digest.hexdigest()[:16]


def _as_array(leaf: Any) -> Any:
    try:
        return np.asarray(leaf)
    except Exception:  # of a tensor, whatever it raises: reading the batch will say so
        return None


def _as_seen(array: Any) -> Any:
    """An array in the dtype that a step sees."""
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _spaced(arrays: list[Any]) -> list[Any]:
    return [arrays[i] for i in _places(len(arrays))]


def _sample(array: Any) -> Any:
    """Some numbers of an array, without a copy of it, nor a look at each page of a mapped file."""
    return array.flat[_places(array.size)]


def _places(count: int) -> Any:
    ends = np.arange(min(_SAMPLE, count))
    spaced = np.linspace(0, max(count - 1, 0), min(_SAMPLE, count)).astype(int)
    return np.unique(np.concatenate([ends, count - 1 - ends, spaced]))
