"""Mean, Sum, Collect, and combinations of several metrics."""

from collections.abc import Callable, Mapping
from operator import methodcaller
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import instance, numeric, real
from solstice._metrics import Metrics, computed
from solstice._sums import Counts, Totals, as_given, at_least_float32, exact_sum
from solstice._types import AnyArray
from solstice.metrics._bases import Additive, Growing, as_stored, check_alike, divide, for_compute
from solstice.metrics._counting import as_mask, as_weights, times


class Mean(Additive):
    """`Mean(values, mask)`: the mean of all values.

    `compute()["mean"]` is the weighted mean, 0 without values, NaN if a value that counts is NaN.

    Args:
        values: real numbers of any shape.
        weights: a mask or the weight of each value, of the same shape or a scalar; 1 by default.
            A negative or NaN weight makes the mean NaN.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: `weights` are of another shape.
    """

    can_raise = False
    is_vectorized = True
    sums: Totals

    def __init__(self, values: ArrayLike, weights: ArrayLike | None = None) -> None:
        numbers, shares = _weighted(values, weights)
        weight = jnp.sum(shares)
        if weights is not None and jnp.asarray(weights).dtype != bool:
            shares = jnp.where(shares >= 0, shares, jnp.nan)  # a compiled step cannot raise
        # A value without weight may be NaN, and NaN * 0 is NaN.
        total = jnp.sum(jnp.where(shares == 0, 0, numbers * shares))
        self.sums = Totals({"total": total, "weight": weight})

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["mean"]`: the mean as a float."""
        m, xp = for_compute(self)
        return {"mean": divide(xp, m.total, m.weight)}


class Sum(Additive):
    """`Sum(values, mask)`: the sum of all values.

    `compute()["sum"]` is an integer for integers and booleans, exact up to 2^63; else a float, also
    with weights.

    Args:
        values: real numbers of any shape.
        mask: true for values that count, boolean of the same shape; all by default.
        weights: a factor of each value, of 0 or more, of the same shape; 1 by default.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: the mask or the weights have another shape, or a sum of integers is merged with
            one of floats.
    """

    can_raise = False
    is_vectorized = True
    total: Counts | Totals
    is_whole: bool = eqx.field(static=True)

    def __init__(
        self,
        values: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        weights: ArrayLike | None = None,
    ) -> None:
        numbers = as_given(real("values", values))
        counts, shares = as_weights(mask, weights, numbers.shape)
        self.is_whole = not jnp.issubdtype(numbers.dtype, jnp.inexact) and shares is None
        if self.is_whole:
            self.total = Counts({"sum": exact_sum(numbers, counts)})
        else:
            each = times(at_least_float32(numbers), shares)
            self.total = Totals({"sum": jnp.sum(jnp.where(counts, each, 0))})

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["sum"]`: the sum, a float or an integer."""
        return self.total.values()


class Collect(Growing):
    """`Collect(scores=scores, labels=labels)`: keep outputs, for plots and exact curves.

    `compute()` returns each array by its name, with the examples of all batches on axis 0, in
    order. It grows: the outputs of a whole epoch stay on the device, and are merged outside the
    compiled step. Outside `jax.jit`, NumPy's float64 and int64 keep their dtype. Weights are one
    more array to keep: `Collect(scores=scores, weights=weights)`.

    Args:
        mask: true for examples to keep, boolean of shape [n]; all by default.
        **arrays: arrays with the examples on axis 0, all of the same length.

    Raises:
        ValueError: there is no array, or lengths differ, or the merged metrics have other names.
    """

    arrays: dict[str, AnyArray]
    mask: Array
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, *, mask: ArrayLike | None = None, **arrays: ArrayLike) -> None:
        self.arrays = {name: as_stored(numeric(name, array)) for name, array in arrays.items()}
        shapes = {name: list(array.shape) for name, array in self.arrays.items()}
        if not shapes or any(not shape for shape in shapes.values()):
            raise ValueError(
                f"Collect takes arrays by name, with the examples on axis 0, as in "
                f"`Collect(scores=scores)`; it was given {shapes or 'none'}"
            )
        if len({shape[0] for shape in shapes.values()}) > 1:
            raise ValueError(f"arrays must have the same length on axis 0; they are {shapes}")
        length = next(iter(shapes.values()))[0]
        self.mask = as_mask(mask, (length,))
        self.names = tuple(arrays)

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["scores"]`: the kept rows, a NumPy array. Not under `jax.jit`."""
        kept, arrays = jax.device_get((self.mask, self.arrays))  # one transfer
        return {name: np.asarray(arrays[name])[kept] for name in self.names}


def _merged(one: Metrics, other: Metrics) -> Metrics:
    return one.merge(other)


class _Composite(Metrics):
    """Metrics whose fields are metrics or hold some: each is merged with its counterpart."""

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: merges each part with its counterpart.

        Raises:
            ValueError: `other` has other parts or is configured differently.
        """
        check_alike(self, other)
        return self._mapped(_merged, other)

    def empty(self) -> Self:
        """`metrics.empty()`: metrics of zero examples; every part needs an `empty`."""
        return self._mapped(methodcaller("empty"))

    def _mapped(self, change: Callable[..., Metrics], *others: Self) -> Self:
        def is_part(node: object) -> bool:
            return node is not self and isinstance(node, Metrics)

        return jax.tree.map(change, self, *others, is_leaf=is_part)


class MetricsCollection(_Composite):
    """`MetricsCollection(loss=Mean(losses), digit=ClassificationMetrics(...))`: several metrics.

    `compute()` returns "digit.accuracy" and so on. Metrics with a single value appear under the
    name of the part alone: "loss".

    Args:
        **parts: metrics by name.

    Raises:
        TypeError: a part is not a Metrics.
        ValueError: the merged metrics have other parts or other static settings.
    """

    can_raise = False
    is_vectorized = True
    parts: dict[str, Metrics]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, **parts: Metrics) -> None:
        for name, part in parts.items():
            instance(name, part, Metrics, "Metrics, since MetricsCollection takes metrics by name")
        self.parts = parts
        self.names = tuple(parts)

    def compute(self) -> Mapping[str, Any]:
        """`metrics.compute()["digit.accuracy"]`: the values of all parts by name."""
        values: dict[str, Any] = {}
        for name in self.names:
            found = computed(self.parts[name])
            alone = len(found) == 1
            values |= {name if alone else f"{name}.{key}": v for key, v in found.items()}
        return values


class WithLoss(_Composite):
    """`WithLoss(ClassificationMetrics(...), losses, weights)`: metrics together with a loss.

    `compute()` returns the values of `metrics` and "loss", the weighted mean of the losses. It
    replaces a "loss" in `metrics`.

    Args:
        metrics: any Metrics.
        losses: real numbers of any shape.
        weights: the weight of each loss; they broadcast against the losses; 1 by default.

    Raises:
        TypeError: `metrics` is not a Metrics, or `losses` or `weights` are not real numbers.
        ValueError: `weights` do not broadcast.
    """

    can_raise = False
    is_vectorized = True
    metrics: Metrics
    loss: Mean

    def __init__(
        self, metrics: Metrics, losses: ArrayLike, weights: ArrayLike | None = None
    ) -> None:
        self.metrics = instance("metrics", metrics, Metrics, "Metrics, such as `Mean(losses)`")
        real("losses", losses)
        shares = None if weights is None else _broadcast(weights, losses)
        self.loss = Mean(losses, shares)

    def compute(self) -> Mapping[str, Any]:
        """`metrics.compute()["loss"]`: the loss and the values of the metrics by name."""
        loss = {"loss": computed(self.loss)["mean"]}
        return loss | {**computed(self.metrics)} | loss


class WithSkipped(_Composite):
    """`WithSkipped(metrics, skipped)`: metrics together with the number of skipped steps.

    `compute()` returns the values of `metrics` and "skipped", a sum. It replaces a "skipped" in
    `metrics`. The ready-made Experiments add it for `solstice.compat.skip_spikes`.

    Args:
        metrics: any Metrics.
        skipped: the number of skipped steps, integers or booleans of any shape.

    Raises:
        TypeError: `metrics` is not a Metrics, or `skipped` are not real numbers.
    """

    can_raise = False
    is_vectorized = True
    metrics: Metrics
    skipped: Sum

    def __init__(self, metrics: Metrics, skipped: ArrayLike) -> None:
        self.metrics = instance("metrics", metrics, Metrics, "Metrics, such as `Mean(losses)`")
        self.skipped = Sum(real("skipped", skipped))

    def compute(self) -> Mapping[str, Any]:
        """`metrics.compute()["skipped"]`: the count and the values of the metrics by name."""
        return {**computed(self.metrics)} | {"skipped": computed(self.skipped)["sum"]}


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
    """The values and their weights as flat arrays."""
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
