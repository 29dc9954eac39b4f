"""What others publish: a kind of ready-made Experiment, its metrics and its checks."""

import jax
import numpy as np
import pytest
from solstice_ranking import RankingExperiment, RankingMetrics

import solstice
from solstice.data import Masked
from solstice.testing import Linear, MetricsConformance, Sgd

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6, 4)).astype(np.float32)
Y = np.digitize(X @ np.array([1.0, -1.0, 0.5, 0.0], np.float32), [0.5, 1.5]).astype(np.float32)
ITEMS = RNG.random((48, 6)) < 0.7


def ndcg(scores, relevance, top):
    def gain(order):
        return sum(relevance[i] / np.log2(rank + 2) for rank, i in enumerate(order[:top]))

    best = gain(np.argsort(-relevance))
    return gain(np.argsort(-scores)) / best if best else np.nan


def listwise(scores, relevance):
    log_p = scores - np.log(np.exp(scores).sum())
    return -(relevance * log_p).sum() / relevance.sum() if relevance.any() else np.nan


def share_of_pairs(queries):
    ordered = [
        scores[i] > scores[j]
        for scores, relevance in queries
        for i in range(len(scores))
        for j in range(len(scores))
        if relevance[i] > relevance[j]
    ]
    return np.mean(ordered) if ordered else 0.0


class TestRankingMetrics(MetricsConformance):
    def examples(self, rng, size):
        relevance = rng.integers(0, 3, (size, 5)) * (rng.random((size, 1)) < 0.8)
        return rng.normal(size=(size, 5)).astype(np.float32), relevance.astype(np.float32)

    def build(self, examples, mask=None):
        return RankingMetrics(*examples, 3, mask=mask)

    def reference(self, examples):
        found = [ndcg(*query, 3) for query in zip(*examples, strict=True)]
        known = [value for value in found if not np.isnan(value)]
        pairs = share_of_pairs(list(zip(*examples, strict=True)))
        return {"ndcg": np.mean(known) if known else 0.0, "pair_accuracy": pairs}


def make(**options):
    return RankingExperiment(Linear(1), Sgd(0.1), top=3, sample_input=X, **options)


def test_it_learns_and_predicts():
    exp = make()
    before = exp.test((X, Y), batch_size=20, callbacks=[])
    exp = exp.train((X, Y), batch_size=16, num_epochs=20, callbacks=[])
    after = exp.test((X, Y), batch_size=20, callbacks=[])
    assert after["loss"] < before["loss"]
    assert after["ndcg"] > 0.9 > before["ndcg"]
    scores = exp.predict(X, batch_size=20)
    expected = [ndcg(*query, 3) for query in zip(scores, Y, strict=True)]
    assert after["ndcg"] == pytest.approx(np.nanmean(expected), rel=1e-5)
    np.testing.assert_allclose(exp(X), scores, rtol=1e-5)


@pytest.mark.parametrize("mask", [ITEMS, ITEMS[:, 0]], ids=["items", "queries"])
def test_masked_items_and_queries_do_not_count(mask):
    def steps(batch, **options):
        exp, metrics = make(**options).train_step(batch)
        return exp.params, {name: float(v) for name, v in metrics.compute().items()}

    hidden = np.where(mask if mask.ndim == 2 else mask[:, None], Y, np.nan)
    params, values = steps(Masked((X, hidden), mask))
    cut, merged = steps(Masked((X, hidden), mask), micro_batches=5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), cut, params)
    assert merged == pytest.approx(values, rel=1e-5)
    if mask.ndim == 1:
        _, expected = steps((X[mask], Y[mask]))
        assert values == pytest.approx(expected, rel=1e-5)
    else:
        scores = np.asarray(make()(X))
        found = [ndcg(s[m], y[m], 3) for s, y, m in zip(scores, Y, mask, strict=True)]
        assert values["ndcg"] == pytest.approx(np.nanmean(found), rel=1e-5)
        losses = [listwise(s[m], y[m]) for s, y, m in zip(scores, Y, mask, strict=True)]
        assert values["loss"] == pytest.approx(np.nanmean(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Y[:, :3]), "relevance must be of shape"),
        ((X, -Y), "relevance must be 0 or more"),
        ((X, Y[:9]), "same number of examples"),
        (X, "must be a pair"),
        (Masked((X, Y), ITEMS[:, :3]), "mask of targets"),
    ],
)
def test_what_does_not_fit_is_refused(batch, message):
    for attempt in (make().train_step, lambda batch: solstice.Trainer().test(make(), [batch])):
        with pytest.raises(solstice.DataError, match=message):
            attempt(batch)


def test_the_model_must_give_a_score_per_item():
    with pytest.raises(solstice.DataError, match="a score per item"):
        RankingExperiment(Linear(2), Sgd(0.1)).train([(X, Y)], callbacks=[])


def test_options_are_those_of_every_kind():
    exp = make(
        loss=lambda scores, relevance: (scores - relevance) ** 2,
        metrics=lambda scores, relevance, mask: solstice.metrics.Mean(scores > 0),
    )
    found = exp.test((X, Y), batch_size=20, callbacks=[])
    scores, counts = np.asarray(exp(X)), (Y > 0).any(axis=1)
    assert found["mean"] == pytest.approx(np.mean(scores > 0))
    assert found["loss"] == pytest.approx(np.mean((scores - Y)[counts] ** 2), rel=1e-5)
