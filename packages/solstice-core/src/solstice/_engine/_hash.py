"""Hash: a 32-bit digest of the bits of an array, cheap enough for every step.

Each word is mixed with its index until all its bits depend on all bits of both, and the results are
added modulo 2**32. A sum does not depend on the order of additions, so the digest is the same on
any number of devices. Without the mixing, two changes of sign would cancel.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from solstice import _tree
from solstice._engine._pack import as_jax
from solstice._engine._placement import SINGLE_DEVICE, Placement

_INDEX = 0x9E3779B9
"""An odd number near 2**32 over the golden ratio, whose multiples are far apart."""

_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B
"""The factors of "lowbias32" by C. Wellons, "Prospecting for hash functions" (2018)."""

_SLICES = 8
_FEW = 2**12
"""On a CPU, XLA reduces an array slowly, so the slices of a larger one are added first."""

_TOGETHER = 16
"""Numbers that are joined at once, because XLA compares each index with all parts of an array."""


def hashes(leaves: Sequence[Array], zero: Array | None = None, *, by_slices: bool) -> Array:
    """A digest for each array, a uint32; within a compiled call.

    Args:
        leaves: arrays of any dtype.
        zero: a number that XLA does not know to be 0. Within a loop, XLA would else compute the
            indices once for all steps, and a step would read as many bytes of them as of arrays.
        by_slices: whether they lie on one device. It changes the time, not the numbers.
    """
    zero = jnp.zeros((), jnp.uint32) if zero is None else zero
    one = _sliced if by_slices else _summed
    digests = [one(_words(leaf), zero) for leaf in leaves]
    if not digests:
        return jnp.zeros(0, jnp.uint32)
    rest = -len(digests) % _TOGETHER
    digests += [jnp.zeros((), jnp.uint32)] * rest
    parts = [jnp.stack(digests[at : at + _TOGETHER]) for at in range(0, len(digests), _TOGETHER)]
    return jnp.stack(parts).reshape(-1)[: len(leaves)]


def arrays_to_hash(tree: object) -> tuple[tuple[str, ...], list[Array]]:
    """The arrays of a tree, such as `params/dense/kernel`, with its numbers."""
    found = {
        path: as_jax(leaf)
        for path, leaf in _tree.leaves_by_slashes(tree).items()
        if _tree.is_array(leaf) or isinstance(leaf, bool | int | float | complex)
    }
    return tuple(found), list(found.values())


def hashes_of_state(
    arrays: list[Array], at: Array | None, every: int, *, by_slices: bool
) -> tuple[list[Array], Array]:
    """The arrays before a step, and their digests: none if `every` is 0, 0 unless `at` is due.

    Of the arrays before a step, because these are in memory: XLA might compute the new ones again
    for their digest, and round them in another way.
    """
    if every == 0:
        return arrays, jnp.zeros(0, jnp.uint32)
    # The zero passes a barrier with what changes at each step, so that XLA does not know it.
    given, zero = lax.optimization_barrier((arrays, jnp.zeros((), jnp.uint32)))
    one = partial(hashes, zero=zero, by_slices=by_slices)
    if every == 1:
        found = one(given)
    else:
        is_due = cast("Array", at) % jnp.uint32(every) == 0
        found = cast("Any", lax.cond)(is_due, one, _nothing, given)
    # The step begins after its digests, so that it can reuse the memory of the arrays.
    return lax.optimization_barrier((arrays, found))


def hashes_of_others(others: Any, *, by_slices: bool) -> Array:
    """The digests of the batch and the outputs of a step."""
    # A barrier, so that XLA compiles the step as without the digests, and rounds alike.
    others, zero = lax.optimization_barrier((others, jnp.zeros((), jnp.uint32)))
    return hashes(_tree.leaves(others), zero, by_slices=by_slices)


def _nothing(arrays: list[Array]) -> Array:
    return jnp.zeros(len(arrays), jnp.uint32)


def hashed(arrays: Sequence[Array], placement: Placement = SINGLE_DEVICE) -> Array:
    """`hashes` outside of a compiled call, which each process can read."""
    return cast("Any", _hashed)(list(arrays), placement)


@partial(jax.jit, static_argnums=1)
def _hashed(arrays: list[Array], placement: Placement) -> Array:
    return placement.constrain_whole(hashes(arrays, by_slices=placement.num_devices == 1))


def _words(leaf: Any) -> Array:
    """The bits of an array as uint32, with one more axis if an element has several words."""
    if _tree.is_key(leaf):
        leaf = jax.random.key_data(leaf)
    dtype: Any = leaf.dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.stack([_words(lax.real(leaf)), _words(lax.imag(leaf))], axis=-1)
    if dtype.kind == "b":
        return leaf.astype(jnp.uint32)
    bits = int(cast("Any", jnp).finfo(dtype).bits if _is_float(dtype) else jnp.iinfo(dtype).bits)
    if bits > 32:
        return lax.bitcast_convert_type(leaf, jnp.uint32)  # two of them for each element
    if not _is_float(dtype):
        return leaf.astype(jnp.uint32)  # the sign is extended, which changes no two numbers alike
    name = f"uint{bits}"
    return lax.bitcast_convert_type(leaf, name).astype(jnp.uint32)


def _is_float(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))


def _mixed(words: Array, key: Array) -> Array:
    x = words ^ key
    x = (x ^ (x >> 16)) * jnp.uint32(_FIRST)
    x = (x ^ (x >> 15)) * jnp.uint32(_SECOND)
    return x ^ (x >> 16)


def _summed(words: Array, zero: Array) -> Array:
    """The digest of words."""
    return jnp.sum(_mixed(words, _keys(words.shape, _strides(words), zero)), dtype=jnp.uint32)


def _sliced(words: Array, zero: Array) -> Array:
    """The same digest, from slices of equal length and the rest after them.

    They are slices of the words in their shape, because XLA would compute the place of each word of
    a flat array. Nor are they along the last axis, where neighbours are read together.
    """
    if words.size < _FEW:
        return _summed(words, zero)
    strides = _strides(words)
    axis = int(np.argmax(words.shape[:-1] or words.shape))
    count = min(_SLICES, words.shape[axis])
    length = words.shape[axis] // count
    starts = [*range(0, length * count, length), length * count]
    *slices, rest = [
        lax.slice_in_dim(words, at, None if at == starts[-1] else at + length, axis=axis)
        for at in starts
    ]
    keys, rest_keys = (_keys(part.shape, strides, zero) for part in (slices[0], rest))
    offsets = [_key(at * strides[axis]) for at in starts]
    mixed = [_mixed(one, keys + by) for one, by in zip(slices, offsets, strict=False)]
    total = jnp.sum(sum(mixed[1:], mixed[0]), dtype=jnp.uint32)
    return total + jnp.sum(_mixed(rest, rest_keys + offsets[-1]), dtype=jnp.uint32)


def _keys(shape: tuple[int, ...], strides: list[int], zero: Array) -> Array:
    """The key of each word of an array, which is that of its index in row-major order."""
    keys = jnp.broadcast_to(zero, shape)
    for axis, stride in enumerate(strides):
        keys = keys + lax.broadcasted_iota(jnp.uint32, shape, axis) * _key(stride)
    return keys


def _key(index: int) -> Array:
    """The key of the word at an index."""
    return jnp.uint32(index * _INDEX % 2**32)


def _strides(words: Array) -> list[int]:
    return [math.prod(words.shape[axis + 1 :]) for axis in range(words.ndim)]
