"""Hash: a 32-bit digest of the bits of an array, cheap enough for every step.

Each word is mixed with its index until all its bits depend on all bits of both, and the results are
added modulo 2**32. A sum does not depend on the order of additions, so the digest is the same on
any number of devices. Without the mixing, two changes of sign would cancel.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from solstice import _tree
from solstice._engine._pack import as_jax

_INDEX = 0x9E3779B9
"""An odd number near 2**32 over the golden ratio, whose multiples are far apart."""

_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B
"""The factors of "lowbias32" by C. Wellons, "Prospecting for hash functions" (2018)."""

_SLICES = 4
_FEW = 2**12
"""On a CPU, XLA reduces an array slowly, so the slices of a larger one are added first."""

_TOGETHER = 16
"""Numbers that are joined at once, because XLA compares each index with all parts of an array."""


def hashes(leaves: Sequence[Array], *, by_slices: bool) -> Array:
    """A digest for each array, a uint32; within a compiled call.

    Args:
        leaves: arrays of any dtype.
        by_slices: whether they lie on one device. It changes the time, not the numbers.
    """
    one = partial(_sliced if by_slices else _summed)
    digests = [one(_words(leaf)) for leaf in leaves]
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


def hashes_of_step(
    arrays: list[Array], others: Any, at: Array | None, every: int, *, by_slices: bool
) -> tuple[Array, Array]:
    """The digests of the arrays of a state, 0 unless the step `at` is due, and those of others."""
    # A barrier, so that XLA compiles the step as without the digests, and rounds alike.
    arrays, others = lax.optimization_barrier((arrays, others))
    one = partial(hashes, by_slices=by_slices)
    if every <= 1:
        return one(arrays if every else []), one(_tree.leaves(others))
    is_due = cast("Array", at) % jnp.uint32(every) == 0
    now = cast("Any", lax.cond)(is_due, one, _nothing, arrays)
    return now, one(_tree.leaves(others))


def _nothing(arrays: list[Array]) -> Array:
    return jnp.zeros(len(arrays), jnp.uint32)


hashed = cast("Callable[..., Array]", jax.jit(hashes, static_argnames="by_slices"))
"""`hashes`, compiled."""


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


def _mixed(words: Array, index: Array) -> Array:
    x = words ^ (index * jnp.uint32(_INDEX))
    x = (x ^ (x >> 16)) * jnp.uint32(_FIRST)
    x = (x ^ (x >> 15)) * jnp.uint32(_SECOND)
    return x ^ (x >> 16)


def _summed(words: Array) -> Array:
    """The digest of words in their shape, so that those on several devices stay there."""
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, stride in enumerate(_strides(words.shape)):
        place = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index = index + place * jnp.uint32(stride % 2**32)
    return jnp.sum(_mixed(words, index), dtype=jnp.uint32)


def _sliced(words: Array) -> Array:
    """The same digest, from slices of equal length and the few words after them."""
    if words.size < _FEW:
        return _summed(words)
    flat, length = words.reshape(-1), words.size // _SLICES
    index = lax.iota(jnp.uint32, length)
    total = jnp.zeros(length, jnp.uint32)
    for at in range(0, length * _SLICES, length):
        total = total + _mixed(flat[at : at + length], index + jnp.uint32(at % 2**32))
    start = length * _SLICES
    after = lax.iota(jnp.uint32, words.size - start) + jnp.uint32(start % 2**32)
    rest = jnp.sum(_mixed(flat[start:], after), dtype=jnp.uint32)
    return jnp.sum(total, dtype=jnp.uint32) + rest


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
