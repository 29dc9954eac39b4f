"""Counts and Totals: exact counts, and sums without drift, over any number of batches.

Each number is kept in two words, because JAX has 32 bits unless it is set to 64.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from solstice import _tree
from solstice._arguments import integers, mapping, real
from solstice._replace import replace
from solstice._types import AnyArray

_Pair = tuple[Array, Array]
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class Words(NamedTuple):
    """Integers in two words: the lower 32 bits, and the upper 32 bits with the sign."""

    low: Array
    high: Array


class _Sums(eqx.Module):
    """Named arrays in two words, concatenated, because one addition is cheaper than many.

    The key of `words` has the names and shapes, so the path in a checkpoint has them too.
    """

    words: dict[str, Array]
    """Of `Counts`, the lower 32 bits, and the upper 32 bits with the sign, in uint32; of `Totals`,
    the sums and their rounding errors. The shape is [2, length]."""
    shapes: _Shapes = eqx.field(static=True)

    @property
    def is_traced(self) -> bool:
        """Whether JAX traces the numbers, so their values are unknown."""
        return any(isinstance(leaf, Tracer) for leaf in _tree.leaves(self.words))

    def _added(self, other: Self, add: Callable[[Array, Array], Array]) -> Self:
        (key, one), (other_key, two) = *self.words.items(), *other.words.items()
        if key != other_key:
            raise ValueError(
                f"cannot add {key} and {other_key}: give both the same names and shapes"
            )
        return replace(self, words={key: add(one, two)})


class Counts(_Sums):
    """`Counts({"hits": jnp.sum(hits), "all": hits.size})`: counts with an exact `+`.

    ```python
    counts = Counts({"hits": jnp.sum(preds == labels), "all": labels.size})
    (counts + counts).values()["hits"]
    ```

    They are exact up to 2^63, where an int32 overflows at 2^31. The count of one batch may be up
    to 2^32.

    Args:
        counts: integers, or arrays of integers or booleans, by name.

    Raises:
        TypeError: a count is not an integer.
        ValueError: there are no counts, or those to add have other names or shapes.
    """

    def __init__(self, counts: Mapping[str, ArrayLike | Words]) -> None:
        words = {n: _words(n, x) for n, x in _given("counts", counts, '{"hits": hits}').items()}
        self.shapes = _shapes({name: pair.low for name, pair in words.items()})
        low, high = [pair.low for pair in words.values()], [pair.high for pair in words.values()]
        self.words = {_key(self.shapes): _stacked(_flat(low), _flat(high))}

    def __add__(self, other: Self) -> Self:
        return self._added(other, solstice_add_counts)

    def values(self) -> dict[str, Any]:
        """`counts.values()["hits"]`: Python integers, and arrays as NumPy's int64.

        While JAX traces they are int32, clipped to 2^31 - 1; int64 if JAX is set to 64 bits.
        """
        if self.is_traced:
            return _named(self, _in_one_word(*_pair(self, jnp)))
        return _plain(_named(self, _whole(self)))

    def floats(self, xp: object = jnp) -> dict[str, Any]:
        """The counts in JAX's widest float dtype; in float64 if `xp` is NumPy."""
        if xp is np:
            return _named(self, _whole(self).astype(np.float64))
        low, high = (word.astype(jnp.int32) for word in _pair(self, jnp))
        # The nearest multiple of 2^32: `low`, now signed, is the distance to it.
        multiple = high + (low < 0).astype(jnp.int32)
        widest = jax.dtypes.canonicalize_dtype(np.float64)
        return _named(self, multiple.astype(widest) * 2.0**32 + low.astype(widest))


class Totals(_Sums):
    """`Totals({"loss": jnp.sum(losses)})`: sums; `+` has twice the digits of float32.

    ```python
    totals = Totals({"loss": jnp.sum(losses)})
    (totals + totals).values()["loss"]
    ```

    A float32 sum drifts by 1e-2 over a million equal batches, and finally stops growing.

    Args:
        totals: numbers or arrays by name. Half precision becomes float32.

    Raises:
        ValueError: there are no totals, or those to add have other names or shapes.
    """

    def __init__(self, totals: Mapping[str, ArrayLike]) -> None:
        given = _given("totals", totals, '{"loss": jnp.sum(losses)}')
        arrays = {name: at_least_float32(real(name, total)) for name, total in given.items()}
        self.shapes = _shapes(arrays)
        flat = _flat([*arrays.values()])
        self.words = {_key(self.shapes): _stacked(flat, jnp.zeros_like(flat))}

    def __add__(self, other: Self) -> Self:
        return self._added(other, solstice_add_totals)

    def values(self) -> dict[str, Any]:
        """`totals.values()["loss"]`: Python floats, and arrays as NumPy's float64.

        While JAX traces they have the dtype of the sums.
        """
        return self.floats() if self.is_traced else _plain(Totals.floats(self, np))

    def floats(self, xp: object = jnp) -> dict[str, Any]:
        """The totals in the dtype of the sums; in float64 if `xp` is NumPy."""
        if xp is np:
            total, lost = _pair(self, np)
            return _named(self, total.astype(np.float64) + lost.astype(np.float64))
        total, lost = _pair(self, jnp)
        return _named(self, total + lost)


# Functions and no methods: Equinox makes a module of each method that is read from a module.


def _pair(sums: _Sums, xp: object) -> tuple[Any, Any]:
    """Both words; on the host if `xp` is NumPy."""
    (words,) = sums.words.values()
    return _rows(words if xp is jnp else _tree.to_numpy(words))


def _named(sums: _Sums, flat: AnyArray) -> dict[str, Any]:
    """The concatenated array `flat`, split by name and in the original shapes."""
    axes = flat.shape[:-1]
    return {
        name: flat[..., start:end].reshape(axes + shape)
        for name, start, end, shape in _places(sums.shapes)
    }


@lru_cache(maxsize=128)
def _places(shapes: _Shapes) -> list[tuple[str, int, int, tuple[int, ...]]]:
    """The name of each part, its first index, the index after its last, and its shape."""
    ends = list(accumulate(math.prod(shape) for _, shape in shapes))
    starts = [0, *ends]
    return [
        (name, start, end, shape)
        for (name, shape), start, end in zip(shapes, starts, ends, strict=False)
    ]


def _whole(counts: Counts) -> np.ndarray:
    """Counts as int64."""
    low, high = _pair(counts, np)
    upper = high.astype(np.int32).astype(np.int64) << 32
    return upper | low.astype(np.int64)


@jax.jit
def solstice_add_counts(one: Array, other: Array) -> Array:
    """Adds counts with a carry. The engine finds this function and the next by name in a jaxpr.

    Both words are one array, because XLA computes each array that a loop carries separately.
    """
    return _stacked(*_carried(*_rows(one), *_rows(other)))


@jax.jit
def solstice_add_totals(one: Array, other: Array) -> Array:
    """Adds sums: Knuth's TwoSum, then Dekker's Fast2Sum, so `lost` is below half a digit."""
    (total, lost), (more, more_lost) = _rows(one), _rows(other)
    rough = total + more
    share = rough - total
    error = (total - (rough - share)) + (more - share) + (lost + more_lost)
    # The error of an infinite sum is NaN, which would replace infinity.
    new = jnp.where(jnp.isfinite(rough), rough + error, rough)
    return _stacked(new, jnp.where(jnp.isfinite(new), error - (new - rough), 0))


def _rows(words: AnyArray) -> tuple[Any, Any]:
    return words[..., 0, :], words[..., 1, :]


def _stacked(one: Array, other: Array) -> Array:
    return jnp.stack([one, other], axis=-2)


def _carried(low: Array, high: Array, more_low: Array, more_high: Array) -> _Pair:
    total = low + more_low
    # The lower word has wrapped around if the sum is below an addend.
    return total, high + more_high + (total < more_low).astype(high.dtype)


ADDITIONS = {"solstice_add_counts", "solstice_add_totals"}
"""Functions that add numbers in two words; adding zeros changes nothing."""


def exact_sum(values: ArrayLike, mask: Array | None = None) -> Words:
    """The sum of the integers where `mask` is true; it may exceed the range of their dtype."""
    low, high = _words("values", values)
    if mask is not None:
        low, high = jnp.where(mask, low, 0), jnp.where(mask, high, 0)

    def add(one: _Pair, other: _Pair) -> _Pair:
        return _carried(*one, *other)

    zero = jnp.zeros((), jnp.uint32)
    return Words(*jax.lax.reduce((low, high), (zero, zero), add, tuple(range(low.ndim))))


def _given(name: str, named: object, such_as: str) -> dict[str, Any]:
    found = mapping(name, named, such_as)
    if not found:
        raise ValueError(f"{name} must have an entry, such as {such_as}; it is {named!r}")
    return found


def _words(name: str, count: ArrayLike | Words) -> Words:
    if isinstance(count, Words):
        return count
    whole = as_given(integers(name, count))
    if whole.dtype.itemsize == 8:
        low, high = whole & 0xFFFFFFFF, whole >> 32
    elif jnp.issubdtype(whole.dtype, jnp.signedinteger):
        low, high = whole, whole.astype(np.int32) >> 31
    else:
        low, high = whole, 0 * whole.astype(np.int32)
    return Words(jnp.asarray(low.astype(np.uint32)), jnp.asarray(high.astype(np.uint32)))


def as_given(values: ArrayLike) -> AnyArray:
    """An array in its given dtype, because `jnp.asarray` would cut NumPy's int64 to 32 bits."""
    return values if isinstance(values, Array) else np.asarray(values)


def _in_one_word(low: Array, high: Array) -> Array:
    if jax.config.read("jax_enable_x64"):
        return (high.astype(jnp.int32).astype(jnp.int64) << 32) | low.astype(jnp.int64)
    word, high, limits = low.astype(jnp.int32), high.astype(jnp.int32), jnp.iinfo(jnp.int32)
    return jnp.where(high == word >> 31, word, jnp.where(high < 0, limits.min, limits.max))


def _plain(named: dict[str, Any]) -> dict[str, Any]:
    return {name: value if value.ndim else value.item() for name, value in named.items()}


def _shapes(arrays: dict[str, Array]) -> _Shapes:
    return tuple((name, array.shape) for name, array in arrays.items())


def _key(shapes: _Shapes) -> str:
    return ", ".join(f"{name}{list(shape)}" for name, shape in shapes)


def _flat(arrays: list[Array]) -> Array:
    widest = max((array.dtype for array in arrays), key=lambda dtype: dtype.itemsize)
    return jnp.concatenate([array.reshape(-1).astype(widest) for array in arrays])


def at_least_float32(value: object) -> Array:
    """Float64 unchanged, all else as float32, because half-precision sums stop at 256 or 2048."""
    value = jnp.asarray(value)
    return value if value.dtype == jnp.float64 else value.astype(jnp.float32)
