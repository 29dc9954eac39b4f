"""The share of examples that are right as a whole."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import real
from solstice._sums import Counts
from solstice.metrics._bases import Additive, divide, for_compute, has_nan, highest, widened
from solstice.metrics._counting import as_mask, as_weights, count, count_examples
from solstice.metrics._weights import WeightedCounts, exact_of, sums_of


class ExactMatch(Additive):
    """`ExactMatch(preds, targets, mask=mask)`: the share of examples with all entries right.

    Use it for texts of tokens, maps of pixels and other examples of several entries. `compute()`
    returns "exact_match", and "num_nan", the number of examples with a NaN prediction or score,
    which are wrong. An example whose entries are all masked does not count. For labels of 0 and 1,
    it is "subset_accuracy" of `MultilabelMetrics`.

    Args:
        preds: predicted classes or other numbers, shape [n, ...]; or scores with the classes on one
            more axis, the last, in which case the class with the highest score is the prediction.
        targets: the true values, shape [n, ...].
        mask: true for entries that count, boolean of shape [n, ...] or [n]; all by default. Exclude
            padding.
        weights: the weight of each example, as in `ClassificationMetrics`.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts

    def __init__(
        self,
        preds: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> None:
        one = widened(jnp.asarray(real("preds", preds)))
        other = widened(jnp.asarray(real("targets", targets)))
        nan = has_nan(one)
        if one.ndim == other.ndim + 1 and one.shape[-1] > 0:
            one, nan = highest(one), jnp.any(nan, axis=-1)
        if one.ndim == 0 or one.shape != other.shape:
            raise ValueError(
                f"expected preds and targets of shape [n, ...], or preds with the classes on one "
                f"more axis; they are {list(jnp.shape(preds))} and {list(other.shape)}"
            )
        entries = as_mask(mask, one.shape, by_row=True)
        counts, shares = as_weights(_over(entries, jnp.any), weights, one.shape[:1])
        with jax.numpy_dtype_promotion("standard"):  # floats may be compared with integers
            same = one == other
        right = counts & _over(same | ~entries, jnp.all)
        self.counts = sums_of(
            {
                "right": count(right, weights=shares),
                "number": count(counts, weights=shares),
                "num_nan": count_examples(counts & _over(nan & entries, jnp.any), shares),
            }
        )

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["exact_match"]`: a float and an integer count."""
        m, xp = for_compute(self)
        exact = exact_of(self.counts)
        return {
            "exact_match": divide(xp, m.right, m.number),
            "num_nan": exact["num_nan"],
        }


def _over(entries: Array, join: Any) -> Array:
    """Joined over all axes but that of the examples."""
    return join(entries, axis=tuple(range(1, entries.ndim)))
