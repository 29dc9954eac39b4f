"""Metrics of two classes: labels that are neither, rare and saturated classes, float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import metrics
from solstice.testing import Sgd

NAN = np.float32("nan")
N = 24


# Labels that are neither 0 nor 1

KINDS = {
    "BinaryMetrics": metrics.BinaryMetrics,
    "BinaryCurves": metrics.BinaryCurves,
    "MultilabelMetrics": metrics.MultilabelMetrics,
}
each_kind = pytest.mark.parametrize("kind", KINDS)
NEITHER = {
    "int8": [-1, 2, -128],
    "uint8": [2, 255],
    "int32": [-100, -1, 2, 10**9],
    "int64": [-100, 2**32 + 1, 2**33],
    "float16": [0.1, 0.9, -1, NAN],
    "float32": [0.1, 0.9, -1, 2, NAN, np.inf, 1 + 2**-20],
    "float64": [1 + 1e-12, 1e-300, 2**60],
}


def shaped(kind: str, *arrays: Any) -> tuple[Any, ...]:
    return tuple(x.reshape(-1, 3) if kind == "MultilabelMetrics" else x for x in arrays)


def without_counts(computed: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in computed.items() if name != "num_out_of_range"}


@each_kind
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999), dtype=st.sampled_from([*NEITHER]), compiled=st.booleans(),
    nan=st.booleans(),
)  # fmt: skip
def test_what_is_neither_0_nor_1_is_counted_and_left_out(kind, seed, dtype, compiled, nan):
    rng = np.random.default_rng(seed)
    scores, truth = rng.random(N, np.float32), rng.integers(0, 2, N)
    bad, mask = rng.random(N) < 0.3, rng.random(N) < 0.7
    labels = np.where(bad, rng.choice(np.asarray(NEITHER[dtype], dtype), N), truth.astype(dtype))
    if nan:
        scores[~bad & (rng.random(N) < 0.1)] = NAN
    scores, labels, truth, bad, mask = shaped(kind, scores, labels, truth == 1, bad, mask)

    def build(*arrays: Any) -> Any:
        return KINDS[kind](*arrays[:2], mask=arrays[2])

    if compiled and dtype not in ("int64", "float64"):  # in which jax.jit would round them
        build = jax.jit(build)
    found, expected = build(scores, labels, mask).compute(), build(scores, truth, mask & ~bad)
    assert found["num_out_of_range"] == np.sum(mask & bad)
    assert without_counts(found) == without_counts(expected.compute())


@each_kind
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "int64", "float16", "float32"])
def test_zeros_and_ones_of_any_dtype_are_labels(kind, dtype):
    rng = np.random.default_rng(0)
    scores, labels = shaped(kind, rng.random(N, np.float32), rng.integers(0, 2, N).astype(dtype))
    found = KINDS[kind](scores, labels).compute()
    assert found["num_out_of_range"] == 0
    assert found == KINDS[kind](scores, labels == 1).compute()
    assert found == KINDS[kind](jnp.asarray(scores), jnp.asarray(labels)).compute()


@each_kind
def test_counts_of_what_is_neither_merge(kind):
    scores, labels = shaped(kind, np.full(N, 0.5, np.float32), np.full(N, -1))
    one = KINDS[kind](scores, labels)
    assert one.merge(one).compute()["num_out_of_range"] == 2 * N
    assert one.empty().compute()["num_out_of_range"] == 0


# Curves of the logit's bins

REGIMES = {
    "usual": (0.5, -0.5, 1.0, 1.0),
    "confident": (0.5, -4.0, 8.0, 2.0),
    "rare, logits near -7": (0.01, -7.0, 1.9, 1.0),
    "rarer, logits near -11": (0.005, -11.0, 1.8, 1.0),
    "saturated, logits near 12": (0.5, 12.0, 1.0, 1.0),
}
each_regime = pytest.mark.parametrize("regime", REGIMES)


def drawn(regime: str, seed: int, size: int = 20_000) -> tuple[Any, Any]:
    rate, offset, apart, spread = REGIMES[regime]
    rng = np.random.default_rng(seed)
    labels = rng.random(size) < rate
    return (offset + apart * labels + spread * rng.normal(size=size)).astype(np.float32), labels


def areas(scores: Any, labels: Any) -> dict[str, float]:
    return {
        "roc_auc": float(sk.roc_auc_score(labels, scores)),
        "average_precision": float(sk.average_precision_score(labels, scores)),
    }


def assert_near(found: Any, expected: dict[str, float]) -> None:
    assert found["roc_auc"] == pytest.approx(expected["roc_auc"], abs=0.005)
    assert found["average_precision"] == pytest.approx(expected["average_precision"], abs=0.02)


@each_regime
@pytest.mark.parametrize("seed", range(3))
def test_areas_of_logits_are_those_of_scikit_learn(regime, seed):
    logits, labels = drawn(regime, seed)

    @jax.jit
    def build(logits: Any, labels: Any) -> Any:
        return metrics.BinaryMetrics(logits, labels, from_logits=True)

    parts = zip(np.split(logits, 4), np.split(labels, 4), strict=True)
    total = build(logits[:0], labels[:0])
    for part in parts:
        total = total.merge(build(*part))
    assert_near(total.compute(), areas(logits, labels))


@each_regime
def test_areas_of_probabilities_are_those_of_scikit_learn(regime):
    logits, labels = drawn(regime, 0)
    scores = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    assert_near(metrics.BinaryMetrics(scores, labels).compute(), areas(scores, labels))


class Logits:
    """A model that gives its inputs: they are the logits."""

    def init(self, key: Any, x: Any, /) -> Any:
        return {"bias": jnp.zeros(())}, ()

    def forward(self, params: Any, state: Any, x: Any, /, *, train: bool, key: Any = None) -> Any:
        return x[:, 0] + params["bias"], state


@each_regime
def test_the_experiment_gives_its_logits(regime):
    logits, labels = drawn(regime, 1)
    exp = solstice.BinaryClassificationExperiment(Logits(), Sgd(0.1), threshold=0.7)
    found = exp.test((logits[:, None], labels), batch_size=5_000, callbacks=[])
    assert_near(found, areas(logits, labels))
    guessed = np.asarray(jax.nn.sigmoid(logits)) >= 0.7
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, guessed), abs=1e-6)


def bins_of(found, name):
    return found.counts.values()[name]


@jax.jit
def bin_of(score):
    return jnp.argmax(bins_of(metrics.BinaryMetrics(score[None], jnp.ones(1)), "positives"))


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(
        st.one_of(st.floats(0, 1, width=32), st.sampled_from([-0.0, -1.0, 2.0, np.inf, -np.inf])),
        min_size=N, max_size=N,
    )
)  # fmt: skip
def test_bins_rise_with_the_probability(scores):
    """Each example by itself, in their order: no bin is below that of a smaller score."""
    scores = np.sort(np.asarray(scores, np.float32))
    bins = [int(bin_of(score)) for score in scores]
    assert bins == sorted(bins)


def test_logits_and_probabilities_are_binned_alike_and_merge():
    logits = np.linspace(-12, 12, 49, dtype=np.float32)
    labels = np.arange(49) % 2
    of_logits = metrics.BinaryMetrics(logits, labels, from_logits=True, num_bins=64)
    scores = np.asarray(jax.nn.sigmoid(logits))
    of_scores = metrics.BinaryMetrics(scores, labels, num_bins=64)
    for name in ("positives", "negatives"):
        apart = np.cumsum(bins_of(of_logits, name)) - np.cumsum(bins_of(of_scores, name))
        assert np.abs(apart).max() <= 1  # one may be at an edge
    merged = of_logits.merge(of_scores).compute()
    assert merged["accuracy"] == of_logits.compute()["accuracy"] == of_scores.compute()["accuracy"]


def test_logits_at_their_edges():
    logits = np.float32([np.nan, np.inf, -np.inf, 3e38, 0])
    found = metrics.BinaryMetrics(logits, np.array([1, 1, 0, 1, 1]), from_logits=True).compute()
    assert found["num_nan"] == 1
    assert found["accuracy"] == pytest.approx(4 / 5)  # a logit of 0 is a probability of 0.5
    assert found["roc_auc"] == 1


# Scores of float64


def test_scores_of_float64_are_told_apart():
    labels = np.array([0, 1])
    close = np.array([0.99999999, 0.999999991])
    for scores in (close, close.tolist()):
        assert metrics.BinaryCurves(scores, labels).compute()["roc_auc"] == 1


@given(seed=st.integers(0, 999), scale=st.sampled_from([1.0, 1e-9, 1e-300]))
@settings(max_examples=20, deadline=None)
def test_merged_curves_of_float64_are_those_of_scikit_learn(seed, scale):
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(0, 2, 40), [0, 1])
    scores = scale * (1e6 + rng.normal(size=42) + labels)
    one, two = (metrics.BinaryCurves(scores[s], labels[s]) for s in (slice(9), slice(9, None)))
    merged = one.empty().merge(one).merge(two)
    found = merged.compute()
    for name, value in areas(scores, labels).items():
        assert found[name] == pytest.approx(value, rel=1e-12)
    expected = sk.roc_curve(labels, scores, drop_intermediate=False)
    for mine, theirs in zip(merged.roc_curve(), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_scores_of_float64_merge_with_those_of_jax_and_work_compiled():
    labels = np.array([0, 1, 1])
    host = metrics.BinaryCurves(np.array([0.1, 0.2, 0.3]), labels)
    device = metrics.BinaryCurves(jnp.asarray([0.1, 0.2, 0.3]), labels)
    for merged in (
        host.merge(device),
        device.merge(host),
        jax.jit(lambda a, b: a.merge(b))(host, device),
    ):
        assert merged.compute()["roc_auc"] == 1
    assert device.merge(device).scores.dtype == jnp.float32
