"""Metrics of retrieval: how high the relevant items of each query are ranked."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import real, whole
from solstice._sums import Counts, Totals, at_least_float32
from solstice.metrics._bases import Additive, divide, for_compute, has_nan
from solstice.metrics._counting import as_mask, as_weights, count, count_examples, times, weighing
from solstice.metrics._weights import WeightedCounts, exact_of, sums_of


class RetrievalMetrics(Additive):
    """`RetrievalMetrics(scores, relevance, top_k=10)`: recall, reciprocal rank and NDCG of queries.

    Each row is a query, and its items are ranked by their scores. `compute()` returns the means
    over queries:

    - "recall_at_10": the share of the relevant items, those of a relevance above 0, that is among
      the 10 items with the highest scores;
    - "mrr": 1 / the rank of the first relevant item, among all items;
    - "ndcg_at_10": discounted cumulative gain of the 10 first items, divided by that of the best
      order, as scikit-learn's `ndcg_score` with `k=10`;
    - "num_without_relevant": number of queries without a relevant item. Their values are 0;
    - "num_out_of_range": number of relevances that are negative, infinite or NaN. These items are
      excluded, except from "num_nan";
    - "num_nan": number of NaN scores. They rank last.

    Of equal scores, the relevant items rank last: a model that gives all items one score has found
    nothing. A query whose items are all excluded does not count.

    Args:
        scores: a higher score ranks first; shape [n, num_items], of any range.
        targets: the relevance of each item, of 0 or more, of shape [n, num_items]. If one item is
            relevant, `jax.nn.one_hot(index, num_items)`.
        mask: true for items that count, boolean of shape [n, num_items] or [n]; all by default.
        weights: the weight of each query, of shape [n]; else as in `ClassificationMetrics`.
        top_k: number of first items, 1 or more. Of fewer items, all are the first.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or metrics of different `top_k` are merged.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    sums: Totals
    top_k: int = eqx.field(static=True)

    def __init__(
        self,
        scores: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        top_k: int = 10,
    ) -> None:
        self.top_k = top_k = whole("top_k", top_k)
        scores = at_least_float32(real("scores", scores))
        relevance = at_least_float32(real("targets", targets))
        if scores.ndim != 2 or scores.shape != relevance.shape or scores.shape[1] == 0:
            raise ValueError(
                f"expected scores and targets of shape [n, num_items]; they are "
                f"{list(scores.shape)} and {list(relevance.shape)}"
            )
        given, nan = as_mask(mask, scores.shape, by_row=True), has_nan(scores)
        items = given & (relevance >= 0) & jnp.isfinite(relevance)
        rows, shares = as_weights(jnp.any(given, axis=1), weights, scores.shape[:1])
        queries, given = rows & jnp.any(items, axis=1), given & weighing(rows, shares)[:, None]
        gains = jnp.where(items, relevance, 0)
        ranked = _ranked(jnp.where(nan, -jnp.inf, scores), gains, items)
        found = _scores(ranked, -jnp.sort(-gains, axis=1), top_k)
        self.sums = Totals(
            {n: jnp.sum(jnp.where(queries, times(x, shares), 0)) for n, x in found.items()}
        )
        self.counts = sums_of(
            {
                "queries": count(queries, weights=shares),
                "without": count_examples(queries & ~jnp.any(gains > 0, axis=1), shares),
                "out_of_range": count(given & ~items),
                "num_nan": count(given & nan),
            }
        )

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["mrr"]`: three floats and three integer counts."""
        m, xp = for_compute(self)
        exact = exact_of(self.counts)
        return {
            f"recall_at_{self.top_k}": divide(xp, m.recall, m.queries),
            "mrr": divide(xp, m.reciprocal, m.queries),
            f"ndcg_at_{self.top_k}": divide(xp, m.gain, m.queries),
            "num_without_relevant": exact["without"],
            "num_out_of_range": exact["out_of_range"],
            "num_nan": exact["num_nan"],
        }


def _ranked(scores: Array, gains: Array, items: Array) -> Array:
    """The gains of each row by score, highest first; of equal scores, and of no items, last."""
    keys = (~items).astype(scores.dtype), -scores, gains
    return jax.lax.sort(keys, dimension=1, num_keys=3)[2]


def _scores(ranked: Array, best: Array, top_k: int) -> dict[str, Array]:
    """The scores of each query, from its gains in the given order and in the best one."""
    rank = jnp.arange(1, ranked.shape[1] + 1, dtype=ranked.dtype)[None]
    is_first = rank <= top_k
    discount = jnp.where(is_first, 1 / jnp.log2(rank + 1), 0)
    is_relevant = (ranked > 0).astype(ranked.dtype)
    return {
        "recall": divide(
            jnp, jnp.sum(jnp.where(is_first, is_relevant, 0), 1), jnp.sum(is_relevant, 1)
        ),
        "reciprocal": jnp.max(is_relevant / rank, axis=1),
        "gain": divide(jnp, jnp.sum(ranked * discount, 1), jnp.sum(best * discount, 1)),
    }
