"""Metrics of regression."""

from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice import _tree
from solstice._metrics import Metrics, at_least_float32
from solstice._replace import replace
from solstice.metrics._bases import as_mask, check_alike, count, divide, for_compute, zeros_like


class RegressionMetrics(Metrics):
    """`RegressionMetrics(preds, targets, mask=mask)`: errors and correlation.

    `compute()` gives, over all numbers merged:

    - "mse", "rmse", "mae": mean squared error, its root, mean absolute error;
    - "r2": 1 - squared error / spread of the targets about their mean, as scikit-learn's
      `r2_score`; 1 if both are 0, and 0 if only the spread is;
    - "explained_variance": the same without what a constant offset adds to the error;
    - "pearson": the correlation, 0 where one side does not vary;
    - "num_nan": how many pairs had a NaN. They are left out of all else.

    Means and squared deviations are merged as Chan, Golub and LeVeque (1979) do, and kept above a
    value of the data, so that a large offset costs no digits. An array of several outputs counts
    as so many numbers. Deviations are squared in float32: what rests on those above 1e18 may be
    infinite or NaN, and those below 1e-19 count as none.

    Args:
        preds: predictions, of any shape.
        targets: what was to be predicted, of the same shape.
        mask: which count, boolean of the same shape, or of that of axis 0; all if left out.

    Raises:
        ValueError: shapes do not match.
    """

    count: Array
    num_nan: Array
    origin: Array
    """Some value of predictions, targets, and their differences; shape [3]."""
    mean: Array
    """Their means above the origin, so that an offset of all costs no digits; shape [3]."""
    spread: Array
    """Sums of squared deviations from those means; shape [3]."""
    product: Array
    """Sum of the products of the deviations of predictions and targets."""
    absolute: Array
    """Sum of absolute differences."""

    def __init__(
        self, preds: ArrayLike, targets: ArrayLike, *, mask: ArrayLike | None = None
    ) -> None:
        one, other = at_least_float32(preds), at_least_float32(targets)
        if one.shape != other.shape:
            raise ValueError(
                f"preds and targets must be of one shape; they are {list(one.shape)} and "
                f"{list(other.shape)}. Write `preds.squeeze(-1)` where a last axis is 1"
            )
        counts = _mask(mask, one.shape)
        nan = counts & (jnp.isnan(one) | jnp.isnan(other))
        counts &= ~nan
        self.count, self.num_nan = count(counts), count(nan)
        apart, rounding = _difference(one, other)
        values = jnp.stack([x.reshape(-1) for x in (one, other, apart)])
        zero = jnp.zeros_like(one)
        lost = jnp.stack([x.reshape(-1) for x in (zero, zero, rounding)])
        rows = counts.reshape(-1)
        size = jnp.maximum(self.count, 1).astype(values.dtype)
        highest = jnp.max(jnp.where(rows, values, -jnp.inf), axis=1, initial=-jnp.inf)
        self.origin = jnp.where(self.count > 0, highest, 0)
        values = jnp.where(rows, values - self.origin[:, None] + lost, 0)
        self.mean = jnp.sum(values, axis=1) / size
        deviations = jnp.where(rows, values - self.mean[:, None], 0)
        self.spread = jnp.sum(jnp.square(deviations), axis=1)
        self.product = jnp.sum(deviations[0] * deviations[1])
        self.absolute = jnp.sum(jnp.where(rows, jnp.abs(apart).reshape(-1), 0))

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: the metrics of both sets of pairs."""
        check_alike(self, other)
        return _merged(self, other)

    def empty(self) -> Self:
        """`metrics.empty()`: the metrics of no pairs."""
        return _tree.map(zeros_like, self)

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["rmse"]`: floats by name, and one integer count."""
        with np.errstate(over="ignore", invalid="ignore"):  # the values tell it
            return self._values()

    def _values(self) -> dict[str, Any]:
        m, xp = for_compute(self)
        squared = m.spread[2] + m.count * (m.origin[2] + m.mean[2]) ** 2
        mse = divide(xp, squared, m.count)
        return {
            "mse": mse,
            "rmse": xp.sqrt(mse),
            "mae": divide(xp, m.absolute, m.count),
            "r2": _score(xp, squared, m.spread[1], m.count),
            "explained_variance": _score(xp, m.spread[2], m.spread[1], m.count),
            "pearson": divide(xp, m.product, xp.sqrt(m.spread[0]) * xp.sqrt(m.spread[1])),
            "num_nan": self.num_nan,
        }


def _difference(one: Array, other: Array) -> tuple[Array, Array]:
    """The difference, and what it lost by rounding (Knuth's sum without error).

    Where one side is far away, what is lost is all that tells the differences apart.
    """
    apart = one - other
    share = one - apart
    return apart, (one - (apart + share)) + (share - other)


def _merged(a: Any, b: Any) -> Any:
    total = a.count + b.count
    size = jnp.maximum(total, 1).astype(a.mean.dtype)
    share = b.count.astype(a.mean.dtype) / size
    origin = jnp.where(a.count > 0, a.origin, b.origin)
    apart = (b.origin - origin) + (b.mean - a.mean)
    weight = a.count.astype(a.mean.dtype) * share
    return replace(
        a,
        count=total,
        num_nan=a.num_nan + b.num_nan,
        origin=origin,
        mean=a.mean + share * apart,
        spread=a.spread + b.spread + weight * jnp.square(apart),
        product=a.product + b.product + weight * apart[0] * apart[1],
        absolute=a.absolute + b.absolute,
    )


def _score(xp: Any, error: Any, spread: Any, number: Any) -> Any:
    """1 - error / spread; where nothing spreads, 1 without an error and 0 with one."""
    of_none = xp.where((error == 0) & (number > 0), 1.0, 0.0)
    finite = xp.isfinite(error) & xp.isfinite(spread)
    return xp.where(finite, xp.where(spread > 0, 1 - divide(xp, error, spread), of_none), xp.nan)


def _mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """Of the shape of the predictions; a mask of rows serves all of a row."""
    given = None if mask is None else jnp.asarray(mask)
    if given is not None and len(shape) > 1 and given.shape == shape[:1]:
        rows = given.reshape(-1, *[1] * (len(shape) - 1))
        return jnp.broadcast_to(rows, shape).astype(bool)
    return as_mask(given, shape)
