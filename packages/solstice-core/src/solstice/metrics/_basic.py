"""Means, sums, kept outputs, and several metrics as one."""

from collections.abc import Mapping
from typing import Any, Self

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import instance, numeric, real
from solstice._metrics import Metrics
from solstice._replace import replace
from solstice._sums import Counts, Totals, as_given, at_least_float32, exact_sum
from solstice.metrics._bases import (
    Additive,
    Growing,
    as_mask,
    as_stored,
    check_alike,
    divide,
    for_compute,
)


class Mean(Additive):
    """`Mean(values, mask)`: the mean of all values.

    `compute()["mean"]` is their mean, weighted if there are weights; 0 of no values. NaN spoils it.

    Args:
        values: numbers of any shape.
        weights: what each counts, a mask for instance, of the same shape or a scalar; each counts
            1 if left out. One that is negative or NaN makes the mean NaN.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: `weights` are of another shape.
    """

    sums: Totals

    def __init__(self, values: ArrayLike, weights: ArrayLike | None = None) -> None:
        numbers, shares = _weighted(values, weights)
        weight = jnp.sum(shares)
        if weights is not None and jnp.asarray(weights).dtype != bool:
            shares = jnp.where(shares >= 0, shares, jnp.nan)
        total = jnp.sum(jnp.where(shares == 0, 0, numbers * shares))
        self.sums = Totals({"total": total, "weight": weight})

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["mean"]`: a float."""
        m, xp = for_compute(self)
        return {"mean": divide(xp, m.total, m.weight)}


class Sum(Additive):
    """`Sum(values, mask)`: the sum of all values, as `compute()["sum"]`.

    Args:
        values: numbers of any shape. The sum of integers and booleans is exact up to 2^63.
        mask: which count, boolean of the same shape; all if left out.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: the mask is of another shape; or a sum of integers is merged with one of floats.
    """

    total: Counts | Totals
    is_whole: bool = eqx.field(static=True)

    def __init__(self, values: ArrayLike, mask: ArrayLike | None = None) -> None:
        numbers = as_given(real("values", values))
        counts = as_mask(mask, numbers.shape)
        self.is_whole = not jnp.issubdtype(numbers.dtype, jnp.inexact)
        if self.is_whole:
            self.total = Counts({"sum": exact_sum(numbers, counts)})
        else:
            self.total = Totals({"sum": jnp.sum(jnp.where(counts, at_least_float32(numbers), 0))})

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["sum"]`: a float or an integer."""
        return self.total.values()


class Collect(Growing):
    """`Collect(scores=scores, labels=labels)`: keeps outputs, for plots and exact curves.

    `compute()` gives each by its name, the examples of all batches on axis 0, in their order.
    It grows: an epoch's outputs are kept on the device, and merged outside of the compiled step.
    Outside of `jax.jit`, NumPy's float64 and int64 stay what they are.

    Args:
        mask: which examples are kept, boolean of shape [n]; all if left out.
        **arrays: arrays whose axis 0 is the example, all of one length.

    Raises:
        ValueError: there is no array, or lengths differ; or what is merged has other names.
    """

    arrays: dict[str, Array]
    mask: Array
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, *, mask: ArrayLike | None = None, **arrays: ArrayLike) -> None:
        self.arrays = {name: as_stored(numeric(name, array)) for name, array in arrays.items()}
        shapes = {name: list(array.shape) for name, array in self.arrays.items()}
        if not shapes or any(not shape for shape in shapes.values()):
            raise ValueError(
                f"Collect takes arrays by name whose axis 0 is the example, as in "
                f"`Collect(scores=scores)`; it was given {shapes or 'none'}"
            )
        if len({shape[0] for shape in shapes.values()}) > 1:
            raise ValueError(f"arrays must be of one length on axis 0; they are {shapes}")
        length = next(iter(shapes.values()))[0]
        self.mask = as_mask(mask, (length,))
        self.names = tuple(arrays)

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["scores"]`: a NumPy array of what was kept. Not under `jax.jit`."""
        kept = np.asarray(self.mask)
        return {name: np.asarray(self.arrays[name])[kept] for name in self.names}


class MetricsCollection(Metrics):
    """`MetricsCollection(loss=Mean(losses), digit=ClassificationMetrics(...))`: several as one.

    `compute()` gives "digit.accuracy" and so on; a part that has one value gives it by its own
    name, "loss". All are merged in the one pass over the data.

    Args:
        **parts: metrics by name.

    Raises:
        TypeError: a part is no Metrics.
        ValueError: what is merged has other parts, or is configured differently.
    """

    parts: dict[str, Metrics]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, **parts: Metrics) -> None:
        for name, part in parts.items():
            instance(name, part, Metrics, "Metrics, since MetricsCollection takes metrics by name")
        self.parts = parts
        self.names = tuple(parts)

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: each part merged with its like."""
        check_alike(self, other)
        merged = {name: self.parts[name].merge(other.parts[name]) for name in self.names}
        return type(self)(**merged)

    def empty(self) -> Self:
        """`metrics.empty()`: the same of no examples, where every part has an `empty`."""
        parts: dict[str, Any] = self.parts
        return type(self)(**{name: parts[name].empty() for name in self.names})

    def compute(self) -> Mapping[str, Any]:
        """`metrics.compute()["digit.accuracy"]`."""
        values: dict[str, Any] = {}
        for name in self.names:
            computed = self.parts[name].compute()
            alone = len(computed) == 1
            values |= {name if alone else f"{name}.{key}": v for key, v in computed.items()}
        return values


class WithLoss(Metrics):
    """`WithLoss(ClassificationMetrics(...), losses, weights)`: metrics, and the loss beside them.

    `compute()` gives what `metrics` gives, and "loss", the weighted mean of the losses, in place
    of a "loss" of theirs.

    Args:
        metrics: any Metrics.
        losses: numbers of any shape.
        weights: what each counts, broadcasting against the losses; each counts 1 if left out.

    Raises:
        TypeError: `metrics` are no Metrics, or `losses` or `weights` no real numbers.
        ValueError: `weights` do not broadcast.
    """

    metrics: Metrics
    loss: Mean

    def __init__(
        self, metrics: Metrics, losses: ArrayLike, weights: ArrayLike | None = None
    ) -> None:
        self.metrics = instance("metrics", metrics, Metrics, "Metrics, such as `Mean(losses)`")
        real("losses", losses)
        shares = None if weights is None else _broadcast(weights, losses)
        self.loss = Mean(losses, shares)

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: both merged with their like."""
        check_alike(self, other)
        return replace(
            self, metrics=self.metrics.merge(other.metrics), loss=self.loss.merge(other.loss)
        )

    def empty(self) -> Self:
        """`metrics.empty()`: the same of no examples, where the metrics have an `empty`."""
        metrics: Any = self.metrics
        return replace(self, metrics=metrics.empty(), loss=self.loss.empty())

    def compute(self) -> Mapping[str, Any]:
        """`metrics.compute()["loss"]`."""
        return {"loss": self.loss.compute()["mean"], **_without(self.metrics.compute(), "loss")}


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _broadcast(weights: ArrayLike, losses: ArrayLike) -> Array:
    given, shape = jnp.asarray(real("weights", weights)), jnp.shape(losses)
    try:
        return jnp.broadcast_to(given, shape)
    except ValueError as error:
        raise ValueError(
            f"weights must broadcast against the losses, {list(shape)}; they are of the shape "
            f"{list(given.shape)}"
        ) from error


def _weighted(values: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array]:
    """Values and their weights, flat."""
    numbers = at_least_float32(real("values", values)).reshape(-1)
    given = jnp.asarray(real("weights", True if weights is None else weights))
    shape = jnp.shape(values)
    if given.shape not in ((), shape):
        raise ValueError(
            f"weights must be a scalar or of the shape of the values, {list(shape)}; they are of "
            f"the shape {list(given.shape)}"
        )
    shares = jnp.broadcast_to(given, shape).reshape(-1)
    return numbers, shares.astype(numbers.dtype)
