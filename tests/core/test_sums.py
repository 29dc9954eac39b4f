"""Sums in two words: counts past 2^31, and sums of a million equal numbers."""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rare_metrics
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import metrics
from solstice._engine import CompiledStepper
from solstice._loop._snapshot import by_path
from solstice._metrics import as_metrics
from solstice.metrics import Counts, Totals

BIG = 2**31
"""More than an int32 holds."""


def counts_of(values: Any) -> Any:
    return Counts({"a": values[0], "b": np.asarray(values[1:])})


@jax.jit
def doubled(one: Any) -> Any:
    return one.merge(one)


def times(one: Any, power: int) -> Any:
    """The metrics of 2^power such batches."""
    return reduce(lambda total, _: doubled(total), range(power), one)


whole = st.integers(-(2**40), 2**40)


@given(st.lists(st.tuples(whole, whole, whole), min_size=1, max_size=6), st.randoms())
@settings(max_examples=60, deadline=None)
def test_counts_are_exact_in_any_order_and_association(numbers, random):
    parts = [counts_of(n) for n in numbers]
    while len(parts) > 1:
        one, other = (parts.pop(random.randrange(len(parts))) for _ in range(2))
        parts.append(one + other)
    expected = np.sum(np.array(numbers, np.int64), axis=0)
    found = parts[0].values()
    assert found["a"] == expected[0]
    assert type(found["a"]) is int
    np.testing.assert_array_equal(found["b"], expected[1:])
    np.testing.assert_array_equal(parts[0].floats(np)["b"], expected[1:])


@pytest.mark.parametrize(
    "dtype", [bool, np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64]
)
def test_counts_take_every_dtype_at_its_ends(dtype):
    ends = [0, 1] if dtype is bool else [np.iinfo(dtype).min, min(np.iinfo(dtype).max, 2**63 - 1)]
    found = Counts({"ends": np.array(ends, dtype)}).values()["ends"]
    assert found.tolist() == [int(end) for end in ends]


def test_what_is_not_whole_or_of_another_shape_is_refused():
    with pytest.raises(TypeError, match="float32"):
        Counts({"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"a\[\] and b\[\]: give both the same names and shapes"):
        Counts({"a": 1}) + Counts({"b": 1})
    with pytest.raises(ValueError, match=r"a\[2\] and a\[\]"):
        Totals({"a": jnp.ones(2)}) + Totals({"a": 1.0})


@pytest.mark.parametrize("value", [3, -3, BIG - 1, BIG, 2**40, -BIG, -BIG - 1])
def test_while_jax_traces_a_count_ends_at_the_limits_and_never_wraps(value):
    found = jax.jit(lambda counts: counts.values())(Counts({"n": value}))["n"]
    assert found == np.clip(value, -BIG, BIG - 1)
    assert jax.jit(lambda counts: counts.floats())(Counts({"n": value}))["n"] == np.float32(value)


@pytest.mark.parametrize("value", [0.1, 1e-30, -7.3, 1e30])
def test_a_million_equal_numbers_do_not_drift_in_a_compiled_loop(value):
    @jax.jit
    def summed(one: Any, number: Any) -> Any:
        add = jax.lax.fori_loop(0, number - 1, lambda _, total: total + one, one)
        return add, jax.lax.fori_loop(
            0, number - 1, lambda _, t: t + one.floats()["x"], one.floats()["x"]
        )

    found, naive = summed(Totals({"x": jnp.float32(value)}), 10**6)
    expected = float(np.float32(value)) * 10**6
    assert found.values()["x"] == pytest.approx(expected, rel=1e-9, abs=0)
    assert float(naive) != pytest.approx(expected, rel=1e-6, abs=0)  # else this shows nothing


# XLA takes numbers below the normal ones for zero.
FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@given(st.lists(FLOATS, min_size=1, max_size=12), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_totals_have_twice_the_digits_in_any_order_and_association(numbers, seed):
    random = np.random.default_rng(seed)
    parts = [Totals({"x": n}) for n in numbers] + [Totals({"x": 0.0})]
    while len(parts) > 1:
        one, other = (parts.pop(random.integers(len(parts))) for _ in range(2))
        parts.append(one + other)
    exact = np.sum(np.array(numbers, np.float64))
    assert parts[0].values()["x"] == pytest.approx(
        exact, rel=1e-11, abs=1e-11 * np.abs(numbers).sum()
    )


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([np.inf, 1], np.inf),
        ([1, -np.inf], -np.inf),
        ([np.inf, -np.inf], np.nan),
        ([np.nan, 1], np.nan),
        ([3e38, 3e38], np.inf),
    ],
)
def test_what_is_not_finite_stays_so(numbers, expected):
    total = reduce(lambda a, b: a + b, [Totals({"x": np.float32(n)}) for n in [*numbers, 2, 3]])
    np.testing.assert_equal(total.values()["x"], expected)


def test_they_add_up_under_vmap_as_alone():
    values = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
    build = jax.vmap(lambda row: (Counts({"n": row > 0.5, "one": 1}), Totals({"t": row})))
    counts, totals = build(values)
    found, sums = jax.vmap(lambda a, b: (a + a, b + b))(counts, totals)
    np.testing.assert_array_equal(found.values()["n"], 2 * (values > 0.5))
    np.testing.assert_array_equal(found.values()["one"], np.full(4, 2))
    np.testing.assert_allclose(sums.values()["t"], 2 * values.astype(np.float64))


# Metrics


N = 16
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, N).astype(np.int32)
LOSSES = RNG.random(N, np.float32)
SCORES = RNG.random(N, np.float32)
PAIR = LOGITS, LOGITS + LOSSES[:, None]
NAN_PAIR = np.where(LOGITS > 1, np.nan, np.where(LOGITS < -1, np.inf, LOGITS)), PAIR[1]

MANY: dict[str, Any] = {
    "classes": lambda: metrics.ClassificationMetrics(LOGITS, LABELS - 1, LOSSES, 4, top_k=2),
    "confusion": lambda: metrics.ConfusionMatrix(LOGITS, LABELS - 1, 4),
    "calibration": lambda: metrics.CalibrationError(jax.nn.softmax(LOGITS), LABELS),
    "binary": lambda: metrics.BinaryMetrics(SCORES, LABELS > 1, num_bins=8),
    "multilabel": lambda: metrics.MultilabelMetrics(LOGITS, LOGITS > 0.3),
    "regression": lambda: metrics.RegressionMetrics(*PAIR),
    "regression of NaN": lambda: metrics.RegressionMetrics(*NAN_PAIR),
    "language": lambda: metrics.LanguageModelMetrics(LOGITS, LABELS - 1, num_bytes=5 * LABELS),
    "rare": lambda: rare_metrics.collected(LOGITS, LOGITS // 2, LABELS - 1, SCORES > 0.1),
    "mean": lambda: metrics.Mean(LOGITS),
    "weighted mean": lambda: metrics.Mean(LOSSES, LABELS),
    "whole sum": lambda: metrics.Sum(LABELS),
    "sum": lambda: metrics.Sum(LOSSES),
    "with loss": lambda: metrics.WithLoss(metrics.RegressionMetrics(*PAIR), LOSSES, SCORES),
    "mapping": lambda: as_metrics({"loss": LOSSES.mean(), "lr": 0.1}, LOSSES),
}
GROWS = ("num_", "confusion_matrix", "sum")


@pytest.mark.parametrize("kind", MANY)
def test_metrics_of_2_to_the_40_batches_are_those_of_one(kind):
    one = jax.jit(MANY[kind])()
    few, many = one.compute(), times(one, 40).compute()
    for name, value in few.items():
        if not name.rpartition(".")[2].startswith(GROWS):
            np.testing.assert_allclose(many[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
        elif kind == "sum":
            assert many[name] == pytest.approx(value * 2**40, rel=1e-12)
        else:
            np.testing.assert_array_equal(many[name], np.asarray(value) * 2**40, err_msg=name)
            assert isinstance(many[name], int | np.ndarray)


def test_more_than_2_to_the_31_in_one_batch_of_numbers_is_exact():
    found = metrics.LanguageModelMetrics(LOGITS, LABELS, num_bytes=np.full(4, 2**30)).compute()
    assert found["bits_per_byte"] == pytest.approx(found["bits_per_token"] * N / 2**32)
    assert metrics.Sum(np.array([2**40, -3, 7]), np.array([1, 1, 0])).compute()["sum"] == 2**40 - 3
    assert metrics.Sum(jnp.full(5, 2**31 - 1, jnp.int32)).compute()["sum"] == 5 * (2**31 - 1)
    with pytest.raises(ValueError, match="is_whole=True and of is_whole=False"):
        metrics.Sum(1).merge(metrics.Sum(1.0))


@pytest.mark.parametrize("kind", ["classes", "regression", "language", "with loss", "mapping"])
def test_a_million_equal_batches_do_not_drift(kind):
    """In one compiled loop, where a simplifier could undo what a sum has lost."""

    @jax.jit
    def run(one: Any, number: Any) -> Any:
        return jax.lax.fori_loop(0, number - 1, lambda _, total: total.merge(one), one)

    one = jax.jit(MANY[kind])()
    few, many = one.compute(), run(one, 10**6).compute()
    for name, value in few.items():
        if not name.startswith(GROWS):
            np.testing.assert_allclose(many[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


# In a run


class Reports(solstice.Experiment):
    steps: Any
    outputs: Any

    def train_step(self, batch: Any) -> Any:
        return solstice.replace(self, steps=self.steps + 1), self.outputs(batch)

    def eval_step(self, batch: Any) -> Any:
        return self, self.outputs(batch)


def as_classes(batch: Any) -> Any:
    labels = jnp.zeros(batch.shape, jnp.int32)
    return metrics.WithLoss(metrics.ClassificationMetrics(labels, labels, 0.0, 2), batch)


def as_scalars(batch: Any) -> Any:
    return {"loss": jnp.mean(batch)}


@pytest.mark.parametrize("outputs", [as_classes, as_scalars])
def test_all_that_two_words_hold_begins_at_zero(outputs):
    """So that XLA need not choose at each step between the total and the first step's own."""
    stepper = CompiledStepper(Reports(jnp.zeros(()), outputs), "train_step", np.ones(4, np.float32))
    sums = stepper._steps.sums  # pyright: ignore[reportPrivateUsage]
    assert sums
    assert all(sums)


@pytest.mark.parametrize("outputs", [as_classes, as_scalars])
def test_an_empty_batch_does_not_spoil_the_mean_of_an_epoch(outputs):
    batches = [np.full(n, value, np.float32) for n, value in ((0, 0), (4, 1), (0, 0), (2, 4))]
    found = solstice.Trainer().test(Reports(jnp.zeros(()), outputs), batches)
    assert found["loss"] == 2


@pytest.mark.parametrize("outputs", [as_classes, as_scalars])
def test_a_total_past_32_bits_is_restored_by_path(outputs):
    batch = np.full(4, 0.1, np.float32)
    one = as_metrics(outputs(batch), batch)
    assert one is not None
    total = times(one, 40)
    stepper = CompiledStepper(Reports(jnp.zeros(()), outputs), "train_step", batch)
    stepper.restore(stepper.share_experiment(), [by_path(total)])
    restored = stepper.take_metrics()
    assert restored is not None
    assert restored.merge(one).compute() == total.merge(one).compute()
    renamed = {path.replace("loss", "nll"): leaf for path, leaf in by_path(total).items()}
    with pytest.raises(KeyError, match=r"loss|nll"):
        stepper.restore(stepper.share_experiment(), [renamed])
