"""What most metrics share: numbers that add up or are kept, and the same configuration."""

import dataclasses
from types import SimpleNamespace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from solstice import _tree
from solstice._arguments import real
from solstice._hints import mask_hint
from solstice._metrics import Metrics
from solstice._sums import Counts, Totals, at_least_float32


class Additive(Metrics):
    """Metrics whose fields are sums and counts, so that they merge by adding up.

    A field is `Counts`, `Totals`, or an array; sums in an array end at 2^31, or drift.
    """

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: the metrics of both sets of examples.

        Raises:
            ValueError: `other` is configured differently.
        """
        check_alike(self, other)
        return jax.tree.map(_added, self, other, is_leaf=_is_sums)

    def empty(self) -> Self:
        """`metrics.empty()`: the metrics of no examples, of the same configuration."""
        return _tree.map(zeros_like, self)


class Growing(Metrics):
    """Metrics whose arrays have the example on axis 0, and are kept whole.

    They are merged outside of the compiled step.
    """

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: the examples of both, these first.

        Raises:
            ValueError: `other` is configured differently.
        """
        check_alike(self, other)
        return _tree.map(_joined, self, other)

    def empty(self) -> Self:
        """`metrics.empty()`: the same of no examples."""
        return _tree.map(_none_of, self)


def _is_sums(node: Any) -> bool:
    return isinstance(node, Counts | Totals)


def _added(one: Any, other: Any) -> Any:
    return one + other if _is_sums(one) else jnp.add(one, other)


def zeros_like(array: Array) -> Array:
    """Zeros of the shape and dtype of an array."""
    return jnp.zeros(array.shape, array.dtype)


def as_stored(values: ArrayLike) -> Any:
    """A JAX array; or the NumPy one where JAX would change its dtype, and its numbers with it."""
    if isinstance(values, Array) or any(isinstance(leaf, Array) for leaf in _tree.leaves(values)):
        return jnp.asarray(values)
    given = np.asarray(values)
    array = jnp.asarray(given)
    return array if array.dtype == given.dtype else given


def _joined(one: Any, other: Any) -> Any:
    on_host = any(isinstance(x, np.ndarray) for x in (one, other))
    if on_host and not any(isinstance(x, Tracer) for x in (one, other)):
        return np.concatenate([one, other])
    return jnp.concatenate([one, other])


def _none_of(array: Array) -> Array:
    return array[:0]


def check_alike(one: Metrics, other: Any) -> None:
    """Raises a ValueError that names what configures two metrics differently."""
    if type(one) is not type(other):
        raise ValueError(f"cannot merge {type(one).__name__} and {type(other).__name__}")
    for field in dataclasses.fields(one):
        if not field.metadata.get("static", False):
            continue
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if mine != theirs:
            raise ValueError(
                f"cannot merge {type(one).__name__} of {field.name}={mine!r} and of "
                f"{field.name}={theirs!r}: make both alike"
            )


def for_compute(metrics: Any) -> tuple[Any, Any]:
    """The numbers of metrics in floating point, by name, and the namespace to compute with.

    Those of `Counts` and `Totals` have the names that they have there. The namespace is NumPy in
    double precision, so that nothing is compiled and a difference of large counts is exact; or JAX,
    while it traces.
    """
    traced = any(isinstance(leaf, Tracer) for leaf in _tree.leaves(metrics))
    xp: Any = jnp if traced else np
    numbers: dict[str, Any] = {}
    read: Any = metrics if traced else jax.device_get(metrics)
    for field in dataclasses.fields(read):
        name, value = field.name, getattr(read, field.name)
        if _is_sums(value):
            numbers |= value.floats(xp)
        elif hasattr(value, "dtype"):
            numbers[name] = at_least_float32(value) if traced else value.astype(np.float64)
    return SimpleNamespace(**numbers), xp


def divide(xp: Any, numerator: Any, denominator: Any) -> Any:
    """The quotient in floating point, and 0 where nothing is divided."""
    there = denominator != 0
    return xp.where(there, numerator / xp.where(there, denominator, 1.0), 0.0)


def as_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """A boolean mask of this shape; all true if there is none.

    Raises:
        ValueError: it has another shape; or it has numbers that are not 0 or 1, such as weights, or
            that JAX traces, so that they may be.
    """
    if mask is None:
        return jnp.ones(shape, bool)
    given = jnp.asarray(real("mask", mask))
    if given.shape != shape or not _is_mask(given):
        raise ValueError(
            f"the mask must have the shape {list(shape)}, booleans that are true where an entry "
            f"counts; it has {list(given.shape)} of {given.dtype}{mask_hint(mask)}"
        )
    return given.astype(bool)


def _is_mask(given: Array) -> bool:
    if given.dtype == bool or isinstance(given, Tracer):
        return given.dtype == bool
    return bool(np.isin(np.asarray(given), [0, 1]).all())


def count(where: Array, axis: int | None = None) -> Array:
    """How many are true, uint32: a batch may have up to 2^32."""
    return jnp.sum(where, axis=axis, dtype=jnp.uint32)


def has_nan(values: Array, axis: int | None = None) -> Array:
    """Where values are NaN; along an axis, where any is. Integers are never."""
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        nan = jnp.zeros(values.shape, bool)
    else:
        nan = jnp.isnan(values)
    return nan if axis is None else jnp.any(nan, axis=axis)


def highest(scores: Array) -> Array:
    """The first of the highest scores on the last axis, int32; that axis' length if any is NaN.

    As `jnp.argmax`, which on the CPU is several times slower than two simple reductions.
    """
    number = scores.shape[-1]
    index = jnp.arange(number, dtype=jnp.int32).reshape(*[1] * (scores.ndim - 1), number)
    top = jnp.max(scores, axis=-1, keepdims=True)
    return jnp.min(jnp.where(scores == top, index, number), axis=-1)


_FEW = 128
"""Up to so many bins, comparing with each is faster than a scatter, and shards anywhere."""


def tally(bins: Array, length: int, weights: ArrayLike = True) -> Array:
    """How much falls into each bin, shape [length]: uint32, or float32 where the weights are.

    What is outside [0, length) falls into none.
    """
    each = jnp.broadcast_to(jnp.asarray(weights), bins.shape)
    if not jnp.issubdtype(each.dtype, jnp.inexact):
        each = each.astype(jnp.uint32)
    if length <= _FEW or _is_explicit(bins):
        every = jnp.arange(length, dtype=bins.dtype)
        zero = jnp.zeros((), each.dtype)
        hits = jnp.where(bins[:, None] == every[None, :], each[:, None], zero)
        return jnp.sum(hits, axis=0, dtype=each.dtype)
    bins = jnp.where(bins < 0, length, bins)
    return jnp.zeros(length, each.dtype).at[bins].add(each, mode="drop")


def _is_explicit(array: Array) -> bool:
    """Whether its sharding is a part of its type, under which JAX has no scatter."""
    mesh: Any = getattr(getattr(jax.typeof(array), "sharding", None), "mesh", None)
    return any(kind == jax.sharding.AxisType.Explicit for kind in getattr(mesh, "axis_types", ()))


def as_classes(values: Array, num_classes: int) -> Array:
    """As int32 in [0, num_classes]; the last stands for all that is no class."""
    if values.dtype.itemsize < 4:  # in int8, a num_classes of 300 is 44; in bfloat16, 257 is 256
        exact = jnp.float32 if jnp.issubdtype(values.dtype, jnp.inexact) else jnp.int32
        values = values.astype(exact)
    inside = (values >= 0) & (values < num_classes)
    if jnp.issubdtype(values.dtype, jnp.inexact):
        inside &= values == jnp.floor(values)
    return jnp.where(inside, values, 0).astype(jnp.int32) + jnp.where(inside, 0, num_classes)
