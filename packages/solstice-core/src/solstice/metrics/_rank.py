"""Rank correlation, which keeps all numbers."""

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import real
from solstice._types import AnyArray
from solstice.metrics._bases import Growing, as_stored
from solstice.metrics._counting import as_weights, weighing


class RankCorrelation(Growing):
    """`RankCorrelation(preds, targets)`: Spearman's correlation of predictions and targets.

    `compute()` returns "spearman", as SciPy's `spearmanr`, and 0 where predictions or targets are
    constant; and "num_nan", the number of pairs with a NaN, which are excluded. Equal numbers have
    the mean of their ranks, and infinite ones the first or last.

    A rank depends on all numbers, so it keeps them, and is merged outside the compiled step. For
    fixed memory, see "pearson" of `RegressionMetrics`. Outside `jax.jit`, NumPy's float64 numbers
    stay float64.

    Args:
        preds: predictions, of any shape with the examples on axis 0.
        targets: the true values, of the same shape.
        mask: true for entries that count, boolean of the same shape or of shape [n]; all by
            default.
        weights: the weight of each entry, of the same shape or of shape [n]; else as in
            `ClassificationMetrics`. An entry of weight 3 is ranked as three entries.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or metrics with and without weights are merged.
    """

    preds: AnyArray
    targets: AnyArray
    mask: Array
    weights: Array | None

    def __init__(
        self,
        preds: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> None:
        one, other = as_stored(real("preds", preds)), as_stored(real("targets", targets))
        if one.ndim == 0 or one.shape != other.shape:
            raise ValueError(
                f"expected preds and targets of the same shape, [n] or [n, ...]; they are "
                f"{list(one.shape)} and {list(other.shape)}"
            )
        counts, shares = as_weights(mask, weights, one.shape, by_row=True)
        self.preds, self.targets = one.reshape(-1), other.reshape(-1)
        self.mask = weighing(counts, shares).reshape(-1)
        self.weights = None if shares is None else shares.reshape(-1)

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["spearman"]`: a float and a count. Not under `jax.jit`."""
        fields = self.preds, self.targets, self.mask, self.weights
        preds, targets, mask, weights = jax.device_get(fields)  # one transfer
        pair = np.stack([preds, targets]).astype(np.float64)
        nan = np.isnan(pair).any(0)
        kept = mask & ~nan
        shares = np.ones(kept.sum()) if weights is None else weights[kept].astype(np.float64)
        return {"spearman": _correlation(pair[:, kept], shares), "num_nan": (mask & nan).sum()}


def _correlation(pair: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> float:
    if any(len(np.unique(row)) < 2 for row in pair):
        return 0.0
    with np.errstate(invalid="ignore"):  # of an infinite weight, which makes it NaN
        ranks = np.stack([_ranks(row, weights) for row in pair])
        apart = ranks - np.average(ranks, axis=1, weights=weights)[:, None]
        spread = (apart**2) @ weights
        return float(apart[0] * apart[1] @ weights / np.sqrt(spread[0] * spread[1]))


def _ranks(values: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The weight of all smaller values and half of that of equal ones."""
    _, place = np.unique(values, return_inverse=True)
    each = np.bincount(place, weights)
    return (np.cumsum(each) - each / 2)[place]
