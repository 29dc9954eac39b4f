"""Metrics of regression: errors, R2 and correlation."""

from types import ModuleType
from typing import Any, Self

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import real, whole_or_none
from solstice._replace import replace
from solstice._sums import Counts, Totals, at_least_float32
from solstice._types import AnyArray
from solstice.metrics._bases import Additive, divide, for_compute
from solstice.metrics._counting import as_weights, count, times, weighing
from solstice.metrics._weights import WeightedCounts, exact_of, sums_of


class RegressionMetrics(Additive):
    """`RegressionMetrics(preds, targets, mask=mask)`: mean errors, R2 and correlation.

    `compute()` returns, over all merged numbers:

    - "mse", "rmse", "mae": mean squared error, its root, mean absolute error;
    - "r2": 1 - squared error / squared deviation of the targets from their mean, as scikit-learn's
      `r2_score`; 1 if both are 0, and 0 if only the deviation is;
    - "explained_variance": the same, but a constant offset does not add to the error;
    - "pearson": the correlation; 0 if predictions or targets are constant;
    - "adjusted_r2" with `num_features=p`: 1 - (1 - r2) (n - 1) / (n - p - 1), for n numbers, or
      the sum of their weights; 0 unless n > p + 1;
    - "num_nan": number of pairs with a NaN. They are excluded from everything else;
    - "num_infinite": number of pairs with an infinite value. They count as in NumPy: an infinite
      prediction makes "mse", "rmse" and "mae" infinite, "r2" -infinity, and the others NaN.

    Means and squared deviations merge by the method of Chan, Golub and LeVeque (1979). They are
    stored relative to a value of the data, so a large common offset costs no precision. Each
    element of an output array counts as one number. Deviations are squared in float32: above 1e18
    the results may be infinite or NaN, and below 1e-19 deviations count as 0.

    Args:
        preds: predictions, of any shape.
        targets: the true values, of the same shape.
        mask: true for entries that count, boolean of the same shape or of shape [n]; all by
            default.
        weights: the weight of each entry, of the same shape or of shape [n]; else as in
            `ClassificationMetrics`.
        num_features: number of input features of the model, 0 or more; it adds "adjusted_r2".

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or metrics of different `num_features` are merged.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    origin: Array
    """The largest finite value of predictions, targets and differences at the first batch; [3]."""
    means: Totals
    """"mean": their means relative to the origin, so a common offset costs no precision; [3]."""
    sums: Totals
    """"spread": sums of squared deviations from these means, shape [3]; "product": the sum of
    products of the deviations of predictions and targets; "absolute": of absolute differences."""
    num_features: int | None = eqx.field(static=True)

    def __init__(
        self,
        preds: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        num_features: int | None = None,
    ) -> None:
        self.num_features = whole_or_none("num_features", num_features, 0)
        one = at_least_float32(real("preds", preds))
        other = at_least_float32(real("targets", targets))
        if one.shape != other.shape:
            raise ValueError(
                f"preds and targets must have the same shape; they are {list(one.shape)} and "
                f"{list(other.shape)}{_squeezed(one, other)}"
            )
        counts, shares = as_weights(mask, weights, one.shape, by_row=True)
        counts = weighing(counts, shares)
        nan = counts & (jnp.isnan(one) | jnp.isnan(other))
        counts &= ~nan
        infinite = counts & (jnp.isinf(one) | jnp.isinf(other))
        number = count(counts, weights=shares)
        self.counts = sums_of(
            {"count": number, "num_nan": count(nan), "num_infinite": count(infinite)}
        )
        apart, rounding = _difference(one, other)
        values = jnp.stack([x.reshape(-1) for x in (one, other, apart)])
        zero = jnp.zeros_like(one)
        lost = jnp.stack([x.reshape(-1) for x in (zero, zero, rounding)])
        rows = counts.reshape(-1)
        finite = jnp.where(rows, jnp.isfinite(values), False)
        size = _divisor(number, shares is None).astype(values.dtype)
        flat = None if shares is None else shares.reshape(-1)
        highest = jnp.max(jnp.where(finite, values, -jnp.inf), axis=1, initial=-jnp.inf)
        self.origin = jnp.where(jnp.isfinite(highest), highest, 0)
        above = jnp.where(finite, values - self.origin[:, None] + lost, 0)
        mean = jnp.sum(times(above, flat), axis=1) / size
        # An infinite value has no deviation from a mean, so the sums become NaN.
        deviations = jnp.where(finite, above - mean[:, None], jnp.where(rows, jnp.nan, 0))
        self.means = Totals({"mean": mean})
        self.sums = Totals(
            {
                "spread": jnp.sum(times(jnp.square(deviations), flat), axis=1),
                "product": jnp.sum(times(deviations[0] * deviations[1], flat)),
                "absolute": jnp.sum(times(jnp.where(rows, jnp.abs(apart).reshape(-1), 0), flat)),
            }
        )

    def _plus(self, other: Any) -> Self:
        counts, dtype = self.counts + other.counts, self.origin.dtype
        mine, theirs, both = (c.floats()["count"] for c in (self.counts, other.counts, counts))
        share = (theirs / _divisor(both, isinstance(counts, Counts))).astype(dtype)
        weight = mine.astype(dtype) * share
        origin = jnp.where(mine > 0, self.origin, other.origin)
        apart = (other.origin - origin) + (
            other.means.floats()["mean"] - self.means.floats()["mean"]
        )
        between = {
            "spread": weight * jnp.square(apart),
            "product": weight * apart[0] * apart[1],
            "absolute": jnp.zeros_like(weight),
        }
        return replace(
            self,
            counts=counts,
            origin=origin,
            means=self.means + Totals({"mean": share * apart}),
            sums=self.sums + other.sums + Totals(between),
        )

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["rmse"]`: floats by name and two integer counts."""
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are in the values
            return self._values()

    def _values(self) -> dict[str, Any]:
        m, xp = for_compute(self)
        exact = exact_of(self.counts)
        squared = m.spread[2] + m.count * (m.origin[2] + m.mean[2]) ** 2
        squared = xp.where(xp.isfinite(m.absolute), squared, m.absolute)
        mse = divide(xp, squared, m.count)
        r2 = _score(xp, squared, m.spread[1], m.count)
        return {
            "mse": mse,
            "rmse": xp.sqrt(mse),
            "mae": divide(xp, m.absolute, m.count),
            "r2": r2,
            **self._adjusted(xp, r2, m.count),
            "explained_variance": _score(xp, m.spread[2], m.spread[1], m.count),
            "pearson": divide(xp, m.product, xp.sqrt(m.spread[0]) * xp.sqrt(m.spread[1])),
            "num_nan": exact["num_nan"],
            "num_infinite": exact["num_infinite"],
        }

    def _adjusted(self, xp: ModuleType, r2: AnyArray, number: AnyArray) -> dict[str, AnyArray]:
        if self.num_features is None:
            return {}
        freedom = number - self.num_features - 1
        ratio = divide(xp, number - 1, xp.where(freedom <= 0, 0.0, freedom))  # NaN stays
        return {"adjusted_r2": xp.where(freedom <= 0, 0.0, 1 - (1 - r2) * ratio)[()]}


def _divisor(number: Array, is_whole: bool) -> Array:
    """A number of examples, or their weight, which may be below 1; 1 instead of 0."""
    return jnp.maximum(number, 1) if is_whole else jnp.where(number == 0, 1, number)


def _difference(one: Array, other: Array) -> tuple[Array, Array]:
    """The difference and its rounding error (Knuth's error-free sum).

    If one side is much larger than the other, the differences vary only in the rounding error.
    """
    apart = one - other
    share = one - apart
    return apart, (one - (apart + share)) + (share - other)


def _score(xp: ModuleType, error: AnyArray, spread: AnyArray, number: AnyArray) -> AnyArray:
    """1 - error / spread; without spread, 1 if the error is 0 and else 0."""
    of_none = xp.where((error == 0) & (number > 0), 1.0, 0.0)
    there = ~xp.isnan(error) & xp.isfinite(spread)
    return xp.where(there, xp.where(spread > 0, 1 - divide(xp, error, spread), of_none), xp.nan)


def _squeezed(preds: Array, targets: Array) -> str:
    """The hint for a message if one shape has an extra last axis of length 1."""
    for name, one, other in (("preds", preds, targets), ("targets", targets, preds)):
        if one.shape == (*other.shape, 1):
            return f". Write `{name}.squeeze(-1)`"
    return ""
