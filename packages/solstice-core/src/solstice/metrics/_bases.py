"""Base classes of metrics, and functions to divide, average and compare."""

import dataclasses
from functools import lru_cache
from types import ModuleType, SimpleNamespace
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from solstice import _tree
from solstice._metrics import Metrics
from solstice._sums import Counts, Totals, at_least_float32
from solstice._types import AnyArray
from solstice.metrics._weights import WeightedCounts


class Additive(Metrics):
    """`class Errors(Additive)`: metrics whose fields are sums and counts; `merge` adds them.

    A field is `Counts`, `Totals` or an array. Prefer the first two: an int32 array overflows at
    2^31, and a sum in a float32 array drifts.
    """

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: the metrics of the examples of both.

        Raises:
            ValueError: `other` is configured differently.
        """
        check_alike(self, other)
        return self._plus(other)

    def _plus(self, other: Any) -> Self:
        """`merge` for metrics that are alike."""
        return jax.tree.map(_added, self, other, is_leaf=_is_sums)

    def empty(self) -> Self:
        """`metrics.empty()`: metrics of zero examples with the same static settings."""
        return _tree.map(_zeros, self)


class Growing(Metrics):
    """`class Scores(Growing)`: metrics that keep arrays with the examples on axis 0.

    `merge` concatenates, so shapes grow, and the Trainer merges them outside the compiled step.
    """

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: the examples of both, in this order.

        Raises:
            ValueError: `other` is configured differently.
        """
        check_alike(self, other)
        return _tree.map(_joined, self, other)

    def empty(self) -> Self:
        """`metrics.empty()`: metrics of zero examples, with arrays of length 0."""
        return _tree.row(self, slice(0))


def _is_sums(node: object) -> bool:
    return isinstance(node, Counts | Totals)


def _is_weighted(metrics: Metrics) -> bool:
    fields = vars(metrics)
    are_weighted = any(isinstance(value, WeightedCounts) for value in fields.values())
    return are_weighted or fields.get("weights") is not None


def _added(one: Any, other: Any) -> Any:
    return one + other if _is_sums(one) else jnp.add(one, other)


def _zeros(array: Array) -> Array:
    return jnp.zeros_like(array)


def as_stored(values: ArrayLike) -> AnyArray:
    """The values as a JAX array, or as a NumPy array if JAX would narrow their dtype.

    Without x64, JAX turns float64 and int64 into 32 bits, which changes values.
    """
    if isinstance(values, Array) or any(isinstance(leaf, Array) for leaf in _tree.leaves(values)):
        return jnp.asarray(values)
    given = np.asarray(values)
    array = jnp.asarray(given)
    return array if array.dtype == given.dtype else given


def _joined(one: AnyArray, other: AnyArray) -> AnyArray:
    on_host = any(isinstance(x, np.ndarray) for x in (one, other))
    if on_host and not any(isinstance(x, Tracer) for x in (one, other)):
        return np.concatenate([one, other])
    return jnp.concatenate([one, other])


def check_alike(one: Metrics, other: object) -> None:
    """Raises a ValueError if two metrics differ in class or in a static setting, which it names."""
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
    if _is_weighted(one) != _is_weighted(cast("Metrics", other)):
        raise ValueError(
            f"cannot merge {type(one).__name__} with weights and without: give `weights=` to both; "
            f"equal weights are `weights=jnp.ones(n)`"
        )


_AXES_OF_SUMS = 2
"""The axes of the array in `Counts` and `Totals`; those of a population have one more."""


def for_compute(metrics: object) -> tuple[SimpleNamespace, ModuleType]:
    """The numbers of metrics in floating point, by name, and the array namespace for `compute`.

    Numbers in `Counts` and `Totals` keep their names. The namespace is NumPy in double precision,
    so nothing is compiled and a difference of large counts is exact. While tracing it is JAX.

    Of a population, the members are on the last axis, so that axis 0 is that of the classes, and
    numbers of members broadcast against numbers of their classes.
    """
    leaves = _tree.leaves(metrics)
    traced = any(isinstance(leaf, Tracer) for leaf in leaves)
    xp: ModuleType = jnp if traced else np
    numbers, has_members = dict[str, Any](), False
    are_here = traced or all(isinstance(leaf, np.ndarray) for leaf in leaves)
    read: Any = metrics if are_here else jax.device_get(metrics)  # one transfer
    for field in dataclasses.fields(read):
        name, value = field.name, getattr(read, field.name)
        if isinstance(value, Counts | Totals | WeightedCounts):
            # By the class, because Equinox makes a module of a method that is read from a module.
            numbers |= cast("Any", type(value)).floats(value, xp)
            has_members |= _tree.leaves(value)[0].ndim > _AXES_OF_SUMS
        elif hasattr(value, "dtype"):
            numbers[name] = at_least_float32(value) if traced else value.astype(np.float64)
    if has_members:
        numbers = {name: np.moveaxis(array, 0, -1) for name, array in numbers.items()}
    return SimpleNamespace(**numbers), xp


def divide(xp: ModuleType, numerator: Any, denominator: Any) -> Any:
    """The quotient in floating point; 0 where the denominator is 0."""
    if xp is np and np.ndim(denominator) == 0:  # in a quarter of the time
        return numerator / denominator if denominator else np.zeros_like(numerator, float)[()]
    there = denominator != 0
    # NumPy would warn of a division by 0 that the outer `where` drops.
    return xp.where(there, numerator / xp.where(there, denominator, 1.0), 0.0)


def scores_of(
    xp: ModuleType,
    right: AnyArray,
    guessed: AnyArray,
    holding: AnyArray,
    beta: float | None = None,
) -> dict[str, AnyArray]:
    """Precision, recall and F1, from the numbers of right and all predictions, and of labels.

    With `beta`, also the F-score in which recall weighs `beta` times as much, such as "f2".
    """
    found = {
        "precision": divide(xp, right, guessed),
        "recall": divide(xp, right, holding),
        "f1": divide(xp, 2.0 * right, guessed + holding),
    }
    if beta is not None and beta != 1:
        square = beta**2
        found[f"f{beta:g}"] = divide(xp, (1 + square) * right, guessed + square * holding)
    return found


def averaged(
    xp: ModuleType,
    each: dict[str, AnyArray],
    holding: AnyArray,
    unit: str,
    defined: AnyArray | None = None,
) -> dict[str, Any]:
    """Scores of each class or label: their means, plain and by frequency, and each by itself.

    With `defined`, 1 where scores are defined and 0 where not, the means are over the former.
    """
    number = holding.shape[0]
    names = _names_of_each(tuple(each), unit, number)
    single = [values[index] for index in range(number) for values in each.values()]
    if defined is not None:
        holding = holding * defined
    weights, of = divide(xp, holding, holding.sum(0)), number if defined is None else defined.sum(0)
    return {
        **{f"{name}_macro": divide(xp, values.sum(0), of) for name, values in each.items()},
        **{f"{name}_weighted": (values * weights).sum(0) for name, values in each.items()},
        **dict(zip(names, single, strict=True)),
    }


@lru_cache(maxsize=32)
def _names_of_each(names: tuple[str, ...], unit: str, number: int) -> list[str]:
    return [f"{name}_{unit}_{index}" for index in range(number) for name in names]


def has_nan(values: AnyArray, axis: int | None = None) -> Array:
    """Where values are NaN, or with an axis, where any along it is. Integers are never NaN."""
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        nan = jnp.zeros(values.shape, bool)
    else:
        nan = jnp.isnan(values)
    return nan if axis is None else jnp.any(nan, axis=axis)


def highest(scores: Array) -> Array:
    """Index of the first highest score on the last axis, int32; the axis length if any is NaN.

    It replaces `jnp.argmax`, which is several times slower on the CPU than two simple reductions.
    """
    number = scores.shape[-1]
    index = jnp.arange(number, dtype=jnp.int32).reshape(*[1] * (scores.ndim - 1), number)
    top = jnp.max(scores, axis=-1, keepdims=True)
    return jnp.min(jnp.where(scores == top, index, number), axis=-1)


def widened(values: Array) -> Array:
    """In 32 bits at least, since 257 is 256 in bfloat16."""
    if values.dtype.itemsize >= 4:
        return values
    return values.astype(jnp.float32 if jnp.issubdtype(values.dtype, jnp.inexact) else jnp.int32)


def as_classes(values: Array, num_classes: int) -> Array:
    """The values as int32 in [0, num_classes]; `num_classes` marks invalid values.

    Invalid are values out of range, fractions and NaN.
    """
    values = widened(values)  # in int8, a num_classes of 300 is 44
    inside = (values >= 0) & (values < num_classes)
    if jnp.issubdtype(values.dtype, jnp.inexact):
        inside &= values == jnp.floor(values)
    return jnp.where(inside, values, 0).astype(jnp.int32) + jnp.where(inside, 0, num_classes)
