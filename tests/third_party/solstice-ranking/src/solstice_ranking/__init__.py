"""RankingExperiment: order the items of each query by a listwise softmax loss."""

from typing import ClassVar, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp

from solstice import DataError
from solstice.experiments import Options, SupervisedExperiment, Task, counted, elementwise
from solstice.metrics import Additive, Counts, Totals


class RankingMetrics(Additive):
    """`RankingMetrics(scores, relevance, top=10, mask=mask)`: NDCG and ordered pairs."""

    sums: Totals
    counts: Counts

    def __init__(self, scores, relevance, top=10, *, mask=None):
        items = _items(relevance, mask)
        gains = jnp.where(items, relevance, 0)
        order = jnp.argsort(jnp.where(items, -scores, jnp.inf), axis=1)
        ideal, found = jnp.sort(-gains, axis=1), -jnp.take_along_axis(gains, order, axis=1)
        ranks = jnp.arange(2.0, gains.shape[1] + 2)
        discounts = jnp.where(ranks < top + 2, 1 / jnp.log2(ranks), 0)
        best = ideal @ discounts
        pairs = (gains[:, :, None] > gains[:, None]) & items[:, :, None] & items[:, None]
        ordered = pairs & (scores[:, :, None] > scores[:, None])
        ndcg = jnp.where(best < 0, found @ discounts / jnp.where(best < 0, best, 1), 0)
        self.sums = Totals({"ndcg": ndcg.sum()})
        self.counts = Counts(
            {"queries": (best < 0).sum(), "pairs": pairs.sum(), "ordered": ordered.sum()}
        )

    def compute(self):
        counts = self.counts.values()
        return {
            "ndcg": self.sums.values()["ndcg"] / max(counts["queries"], 1),
            "pair_accuracy": counts["ordered"] / max(counts["pairs"], 1),
        }


class RankingTask(Task):
    """Scores that order the items of a query; queries without relevant items do not count."""

    free_axes: ClassVar[int] = 2  # queries and items
    top: int = eqx.field(static=True)

    def check(self, x, targets):
        if targets.ndim != 2 or targets.shape != x.shape[:2]:
            raise DataError(f"relevance must be of shape {x.shape[:2]}; it is {targets.shape}")

    @elementwise
    def check_values(self, batch, mask):
        if not (counted(batch[1], mask) >= 0).all():
            raise DataError("relevance must be 0 or more")

    def outputs(self, outputs, x, targets):
        if outputs.shape != (*x.shape[:2], 1):
            raise DataError(f"the model must give a score per item; it gave {outputs.shape}")
        return outputs[..., 0]

    def losses(self, outputs, targets, mask):
        log_p = jax.nn.log_softmax(jnp.where(_items(targets, mask), outputs, -1e9))
        return -jnp.sum(targets * log_p, axis=1) / jnp.maximum(targets.sum(axis=1), 1e-9)

    def weights(self, targets, mask, losses):
        return (targets > 0).any(axis=1)

    def metrics(self, outputs, targets, mask):
        return RankingMetrics(outputs, targets, self.top, mask=mask)


class RankingExperiment(SupervisedExperiment[RankingTask]):
    """`RankingExperiment(model, optax.adam(1e-3))`: a batch is `(items, relevance)`."""

    def __init__(self, model, optimizer, top=10, *, seed=0, **options: Unpack[Options]):
        super().__init__(model, optimizer, RankingTask(top), seed=seed, **options)


def _items(relevance, mask):
    mask = jnp.ones(1, bool) if mask is None else mask
    return jnp.broadcast_to(mask if mask.ndim == 2 else mask[:, None], relevance.shape)
