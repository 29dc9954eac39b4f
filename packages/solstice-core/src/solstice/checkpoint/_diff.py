"""Differences between two trees or checkpoints."""

from os import PathLike
from typing import Any, cast

import numpy as np

from solstice._numbers import to_little_endian
from solstice._stored import Stored, stored_leaves, to_stored
from solstice.checkpoint._load import read


def diff(one: object, other: object) -> dict[str, str]:
    """`solstice.checkpoint.diff("runs/a", exp)`: by path, what differs, in words.

    Args:
        one: a tree, or the folder of a checkpoint.
        other: another.

    Returns:
        What differs by path, in the order of the first; empty if all numbers have the same bits.

    Raises:
        CheckpointError: a folder has no checkpoint, or a damaged one.
    """
    first, second = _stored(one), _stored(other)
    found = {path: _difference(first.get(path), second.get(path)) for path in {**first, **second}}
    return {path: words for path, words in found.items() if words}


def _stored(given: object) -> dict[str, Stored]:
    if isinstance(given, str | PathLike):
        return read(cast("str | PathLike[str]", given))
    return {path: to_stored(path, leaf) for path, leaf in stored_leaves(given).items()}


def _difference(one: Stored | None, other: Stored | None) -> str | None:
    if one is None or other is None:
        return f"only in the {'second' if one is None else 'first'}"
    kinds = [(leaf.kind, leaf.impl, leaf.array.dtype.name) for leaf in (one, other)]
    if kinds[0] != kinds[1]:
        return f"{_words(one)} and {_words(other)}"
    if one.array.shape != other.array.shape:
        return f"of shape {list(one.array.shape)} and {list(other.array.shape)}"
    mine, theirs = _bits(one.array), _bits(other.array)
    if np.array_equal(mine, theirs):
        return None
    if one.kind == "int":
        return f"{one.array.tobytes().decode()} and {other.array.tobytes().decode()}"
    differ = np.flatnonzero((mine != theirs).any(axis=1))
    first = int(differ[0])
    values = [leaf.array.reshape(-1)[first] for leaf in (one, other)]
    place = [int(index) for index in np.unravel_index(first, one.array.shape)]
    where = f" at {place}" if place else ""
    return f"{len(differ)} of {one.array.size} numbers: {values[0]} and {values[1]}{where}"


def _bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bytes of each number, so that NaN is what it is, and 0 is not -0."""
    flat = np.ascontiguousarray(to_little_endian(array)).reshape(-1)
    rows = flat.view(np.uint8).reshape(len(flat), array.itemsize)
    if array.dtype.char in "gG" and np.finfo(array.dtype).nmant == 63:
        # x86 keeps 10 bytes of a long double in 16: the rest is whatever was there.
        parts = array.itemsize // 16
        return rows.reshape(len(flat), parts, 16)[..., :10].reshape(len(flat), 10 * parts)
    return rows


def _words(leaf: Stored) -> str:
    return f"{leaf.kind} {leaf.array.dtype.name}"
