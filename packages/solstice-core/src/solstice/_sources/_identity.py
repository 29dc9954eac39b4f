"""Identity of a data set: settings and checksums, to notice changed data in a resumed run."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from solstice import _tree
from solstice._batch import is_numeric
from solstice.data import Batches

_WHOLE = 2**26
"""The most bytes to read completely, because that takes 0.1 s once in a saved run."""

_SAMPLE = 2**12
"""The sample of a larger array: this number of evenly spaced elements, and as many at each end. It
is also the sample of the arrays of a larger list."""


def identity_of(data: object) -> dict[str, Any]:
    """The identity of a data set in memory; {} for others, which would have to be read."""
    if isinstance(data, Batches):
        # Another kind, so that a run may continue with the same rows from a store.
        kind = "store" if data.has_stores else "arrays"
        return {"kind": kind, "describe": data.describe(), "checksum": checksum(data.sample())}
    if type(data) in (list, tuple):  # not a subclass, which may read a batch on access
        return {"kind": "list", "checksum": checksum(data)}
    return {}


def differences(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences of two identities, in words."""
    old, new = was.get("describe", {}), now.get("describe", {})
    found = [
        f"{name} had {key}={old[key]}, and has {key}={new[key]}"
        for key in new
        if key in old and old[key] != new[key]
    ]
    # Of another kind it is unknown: two kinds may give the same batches.
    if was.get("kind") == now.get("kind") and was.get("checksum") != now.get("checksum"):
        found.append(
            f"the arrays of {name} are not those of the saved run: their checksum was "
            f"{was.get('checksum')}, and is {now.get('checksum')}"
        )
    return found


def checksum(tree: object) -> str:
    """A checksum of the arrays of a tree, or of a sample if the tree is large."""
    arrays: list[Any] = list(filter(is_numeric, map(_as_array, _tree.leaves(tree))))
    is_whole = sum(array.nbytes for array in arrays) <= _WHOLE
    # With their number, because a sample would miss added arrays.
    digest = hashlib.sha256(f"{len(arrays)}".encode())
    for array in arrays if is_whole else [arrays[i] for i in _places(len(arrays))]:
        # A sample neither copies an array nor reads each page of a mapped file.
        seen: Any = array if is_whole else array.flat[_places(array.size)]
        seen = seen.astype(jax.dtypes.canonicalize_dtype(seen.dtype), copy=False)  # as in a step
        digest.update(f" {seen.dtype} {array.shape} ".encode())
        # A view, because `tobytes` would copy up to the whole data set.
        numbers: Any = np.ascontiguousarray(seen).reshape(-1).view(np.uint8)
        digest.update(numbers)
    return digest.hexdigest()[:16]


def _as_array(leaf: object) -> np.ndarray[Any, Any] | None:
    try:
        return _tree.to_numpy(leaf)
    except Exception:  # any error of a tensor: reading the batch will raise it
        return None


def _places(count: int) -> np.ndarray[Any, Any]:
    ends = np.arange(min(_SAMPLE, count))
    spaced = np.linspace(0, max(count - 1, 0), min(_SAMPLE, count)).astype(int)
    return np.unique(np.concatenate([ends, count - 1 - ends, spaced]))
