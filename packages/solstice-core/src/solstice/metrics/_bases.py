"""What most metrics share: arrays that add up or are kept, and the same configuration."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from solstice import _tree
from solstice._metrics import Metrics, at_least_float32


class Additive(Metrics):
    """Metrics whose arrays are sums and counts, so that they merge by adding up."""

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: the metrics of both sets of examples.

        Raises:
            ValueError: `other` is configured differently.
        """
        check_alike(self, other)
        return _tree.map(jnp.add, self, other)

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


def zeros_like(array: Array) -> Array:
    """Zeros of the shape and dtype of an array."""
    return jnp.zeros(array.shape, array.dtype)


def _joined(one: Array, other: Array) -> Array:
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
    """The metrics in floating point, and the namespace to compute with.

    It is NumPy in double precision, so that nothing is compiled and a difference of large counts is
    exact; or JAX, while it traces.
    """
    if any(isinstance(leaf, Tracer) for leaf in _tree.leaves(metrics)):
        return _tree.map(at_least_float32, metrics), jnp
    return _tree.map(_double, jax.device_get(metrics)), np


def _double(leaf: Any) -> Any:
    return np.asarray(leaf).astype(np.float64)


def divide(xp: Any, numerator: Any, denominator: Any) -> Any:
    """The quotient in floating point, and 0 where nothing is divided."""
    there = denominator != 0
    return xp.where(there, numerator / xp.where(there, denominator, 1.0), 0.0)


def as_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """A boolean mask of this shape; all true if there is none.

    Raises:
        ValueError: it has another shape.
    """
    if mask is None:
        return jnp.ones(shape, bool)
    given = jnp.asarray(mask)
    if given.shape != shape:
        raise ValueError(
            f"the mask must have the shape {list(shape)}, true where an entry counts; it has "
            f"{list(given.shape)}"
        )
    return given.astype(bool)


def count(where: Array, axis: int | None = None) -> Array:
    """How many are true, int32: exact up to 2^31."""
    return jnp.sum(where, axis=axis, dtype=jnp.int32)


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
    """How much falls into each bin, shape [length]: int32, or float32 where the weights are.

    What is outside [0, length) falls into none.
    """
    each = jnp.broadcast_to(jnp.asarray(weights), bins.shape)
    if not jnp.issubdtype(each.dtype, jnp.inexact):
        each = each.astype(jnp.int32)
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
