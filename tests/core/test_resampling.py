"""solstice.resampling: metrics with error bars, the same for any batches and devices."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rare_metrics
import scipy.stats
from jax.extend.random import threefry_2x32

import solstice
from solstice.data import Masked, pad_batch
from solstice.metrics import (
    BinaryCurves,
    ClassificationMetrics,
    Mean,
    MetricsCollection,
    RegressionMetrics,
)
from solstice.resampling import Bootstrap, Resampled, interval, p_value, poisson_weights
from solstice.resampling._intervals import quantile_of_t, tails_of_t
from solstice.resampling._weights import STATES, threefry

N, CLASSES = 150, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 4)).astype(np.float32)
TRUE = RNG.normal(size=(4, CLASSES)).astype(np.float32)
Y = np.argmax(X @ TRUE + RNG.gumbel(size=(N, CLASSES)), axis=1).astype(np.int32)
BARS = {"confidence": 0.95, "replicates": 200}


def per_row(x, mask):
    """Whether each row of a batch counts."""
    return jnp.ones(len(x), bool) if mask is None else mask


class Linear(solstice.Experiment):
    """A linear classifier; `kind` chooses the outputs of `eval_step`."""

    weights: jax.Array
    kind: str = eqx.field(static=True, default="classes")

    def train_step(self, batch):
        bare, _ = (batch.batch, batch.mask) if isinstance(batch, Masked) else (batch, None)

        def loss(weights):
            return -jnp.mean(
                jax.nn.log_softmax(bare[0] @ weights)[jnp.arange(len(bare[1])), bare[1]]
            )

        value, gradient = jax.value_and_grad(loss)(self.weights)
        return solstice.replace(self, weights=self.weights - 0.5 * gradient), {"loss": value}

    def eval_step(self, batch):
        bare, mask = (batch.batch, batch.mask) if isinstance(batch, Masked) else (batch, None)
        x, y = bare
        scores = x @ self.weights
        losses = -jax.nn.log_softmax(scores)[jnp.arange(len(y)), y]
        if self.kind == "scalars":
            return self, {"loss": losses.mean(), "nested": {"square": jnp.mean(losses**2)}}
        if self.kind == "centred":
            return self, {"loss": jnp.mean((losses - losses.mean()) ** 2)}
        if self.kind == "regression":
            return self, RegressionMetrics(scores[:, 0], losses, mask=per_row(x, mask))
        if self.kind == "curves":
            return self, BinaryCurves(scores[:, 0], y == 0)
        return self, MetricsCollection(
            loss=Mean(losses, per_row(x, mask)),
            score=ClassificationMetrics(scores, y, 0.0, CLASSES, mask=per_row(x, mask)),
        )


def batches(*sizes, x=X, y=Y):
    """Batches of these sizes, and one of all the rest."""
    edges = np.minimum([0, *np.cumsum(sizes), len(y)], len(y))
    return [(x[a:b], y[a:b]) for a, b in itertools.pairwise(edges) if b > a]


@pytest.fixture(scope="module")
def exp():
    return Linear(jnp.asarray(TRUE))


@pytest.fixture(scope="module")
def found(exp):
    return solstice.Trainer().test(exp, batches(64, 64), **BARS)


# The weights.


def test_threefry_is_that_of_jax():
    counters = jnp.arange(5, dtype=jnp.uint32), jnp.arange(7, 12, dtype=jnp.uint32)
    ours = jnp.concatenate(threefry((3, 2**31 + 5), counters))
    theirs = threefry_2x32(jnp.array([3, 2**31 + 5], jnp.uint32), jnp.concatenate(counters))
    np.testing.assert_array_equal(ours, theirs)


def test_weights_have_the_moments_of_a_poisson_variable():
    values, shares = np.arange(len(STATES)), np.array(STATES) / 256
    assert shares.sum() == 1
    assert (values * shares).sum() == 1
    assert ((values - 1) ** 2 * shares).sum() == 1
    assert ((values - 1) ** 3 * shares).sum() == pytest.approx(1, abs=0.01)
    exact = [math.exp(-1) / math.factorial(k) for k in values]
    np.testing.assert_allclose(shares, exact, atol=0.011)
    drawn = np.asarray(poisson_weights(jnp.arange(3000), 64))
    counts = np.array([(drawn == value).mean() for value in values])
    np.testing.assert_allclose(counts, shares, atol=5 * np.sqrt(0.25 / drawn.size))


def test_a_weight_depends_on_the_index_the_replicate_and_the_seed_alone():
    whole = np.asarray(poisson_weights(jnp.arange(50), 21, 4))
    some = np.asarray(poisson_weights(jnp.array([7, 49, 0, 7]), 13, 4))
    np.testing.assert_array_equal(some, whole[:13, [7, 49, 0, 7]])
    assert (whole != np.asarray(poisson_weights(jnp.arange(50), 21, 5))).mean() > 0.5


def test_weights_of_examples_and_replicates_are_independent():
    drawn = np.asarray(poisson_weights(jnp.arange(400), 400)) - 1.0
    for matrix in (drawn, drawn.T):
        correlation = (matrix @ matrix.T / matrix.shape[1])[np.triu_indices(400, 1)]
        assert abs(correlation.mean()) < 5 / np.sqrt(correlation.size * 400)
        assert correlation.std() == pytest.approx(1 / 20, rel=0.05)


# Replicates are repeated examples.


def repeated(metrics_of, weights, *arrays):
    """The values of a data set in which each example is there as often as its weight."""
    rows = np.repeat(np.arange(len(weights)), weights.astype(int))
    return metrics_of(*(array[rows] for array in arrays)).compute()


def of_classes(scores, labels):
    return ClassificationMetrics(scores, labels, 0.5, CLASSES)


@pytest.mark.parametrize(
    "metrics_of",
    [of_classes, rare_metrics.padded_to(64), RegressionMetrics],
    ids=["adds", "rare", "merges"],
)
def test_a_replicate_has_the_metrics_of_repeated_examples(metrics_of):
    n = 37
    scores = X[:n] @ TRUE
    arrays = {
        of_classes: (scores, Y[:n]),
        RegressionMetrics: (scores[:, 0], X[:n, 0]),
    }.get(metrics_of, rare_metrics.examples(np.random.default_rng(0), n))
    each = jax.vmap(lambda *row: metrics_of(*(x[None] for x in row)))(*arrays)
    index = np.arange(5, 5 + n)
    found = Bootstrap(each, index, replicates=20, seed=3).distribution()
    weights = np.asarray(poisson_weights(jnp.asarray(index), 20, 3))
    for replicate in (0, 7, 19):
        expected = repeated(metrics_of, weights[replicate], *arrays)
        for name, values in found.replicates.items():
            assert values[replicate] == pytest.approx(float(expected[name]), rel=2e-5, abs=1e-6), (
                name
            )
    for name, value in metrics_of(*arrays).compute().items():
        assert found.estimates[name] == pytest.approx(float(value), rel=1e-5, abs=1e-6), name


def test_more_examples_than_one_call_takes():
    values = np.random.default_rng(1).normal(size=2500).astype(np.float32)
    found = Bootstrap(jax.vmap(Mean)(values), np.arange(2500), replicates=24).distribution()
    weights = np.asarray(poisson_weights(jnp.arange(2500), 24), np.float64)
    expected = weights @ values.astype(np.float64) / weights.sum(axis=1)
    np.testing.assert_allclose(found.replicates["mean"], expected, atol=1e-6)
    assert found.estimates["mean"] == pytest.approx(values.astype(np.float64).mean(), rel=1e-6)


def test_counts_stay_exact_and_have_no_bars():
    labels = np.array([0, 5, 1, 1], np.int32)
    each = jax.vmap(lambda p, y: of_classes(p[None], y[None]))(labels, labels)
    values = Bootstrap(each, np.arange(4), replicates=20).compute()
    assert values["num_out_of_range"] == 1
    assert isinstance(values["num_out_of_range"], int)
    assert "num_out_of_range_low" not in values


def test_metrics_that_need_the_host_in_compute():
    class OnHost(Mean):
        def compute(self):
            return {"mean": float(np.asarray(self.sums.values()["total"]))}

    each = jax.vmap(OnHost)(jnp.arange(30.0))
    values = Bootstrap(each, np.arange(30), replicates=20).compute()
    assert values["mean"] == 435
    assert values["mean_low"] < 435 < values["mean_high"]


# The interval.


def test_quantiles_of_t_and_their_inverse():
    for degrees in (1, 2, 3, 7.5, 30, 1e6):
        found = quantile_of_t(0.975, degrees)
        assert found == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=2e-4)
        assert tails_of_t(found, degrees) == pytest.approx(0.05, rel=1e-6)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(2).normal(3, 2, size=1000).astype(np.float32)
    found = Bootstrap(jax.vmap(Mean)(values), np.arange(1000), replicates=4000).compute()
    error = values.std(ddof=1) / np.sqrt(1000)
    assert found["mean_se"] == pytest.approx(error, rel=0.06)
    assert found["mean_low"] == pytest.approx(found["mean"] - 1.96 * error, abs=0.15 * error)
    assert found["mean_high"] == pytest.approx(found["mean"] + 1.96 * error, abs=0.15 * error)


def test_p_is_below_5_percent_where_the_interval_excludes_0():
    rng, differ = np.random.default_rng(3), 0
    for _ in range(200):
        value = rng.normal(0, 2)
        each = value + rng.gamma(2, 1, 400) - 2
        low, high = interval(value, each, 0.95, 60)
        differ += bool(low > 0 or high < 0) != bool(p_value(value, each, 60) < 0.05)
    assert differ <= 2  # one replicate more or less


def test_undefined_values_have_undefined_bounds():
    nan = np.full((30, 2), np.nan)
    nan[:, 1] = np.arange(30)
    low, high = interval(np.array([np.nan, 15.0]), nan, 0.9, 20)
    assert np.isnan([low[0], high[0]]).all()
    assert 0 < low[1] < 15 < high[1] < 29
    assert np.isnan(interval(1.0, np.ones(30), 0.9, 1)).all()  # one example shows no spread


# Evaluation.


def test_values_are_those_without_bars(exp, found):
    plain = solstice.Trainer().test(exp, batches(64, 64))
    assert {n for n in found if not n.endswith(("_low", "_high", "_se"))} == {*plain}
    for name, value in plain.items():
        assert found[name] == pytest.approx(value, rel=1e-6)
        if isinstance(value, float):
            assert found[f"{name}_low"] <= value <= found[f"{name}_high"], name


def near(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        # Sums of losses round by batch; counts do not.
        assert other[name] == pytest.approx(value, rel=1e-5 if "loss" in name else 0), name


@pytest.mark.parametrize("sizes", [(1, 148), (7,) * 21, (150,)], ids=str)
def test_any_batches_give_the_same_bars(exp, found, sizes):
    near(found, solstice.Trainer().test(exp, batches(*sizes), **BARS))


def test_padding_and_masked_examples_change_nothing(exp, found):
    padded = [pad_batch(batch, 64) for batch in batches(64, 64)]
    near(found, solstice.Trainer().test(exp, padded, **BARS))
    x, y = np.insert(X, [0, 3, 3, 150], 9.0, axis=0), np.insert(Y, [0, 3, 3, 150], 0)
    there = np.insert(np.ones(N, bool), [0, 3, 3, 150], False)
    near(found, solstice.Trainer().test(exp, [Masked((x, y), there)], **BARS))


def test_data_on_the_device_and_one_step_per_call(exp, found):
    data = solstice.data.batches((X, Y), 64, on_device=True)
    near(found, solstice.Trainer().test(exp, data, **BARS))
    near(found, solstice.Trainer(steps_per_call=1).test(exp, batches(64, 64), **BARS))


def test_another_seed_gives_other_replicates(exp, found):
    other = Resampled(exp, **BARS, seed=1)
    values = solstice.Trainer().test(other, batches(64, 64))
    assert values["loss"] == found["loss"]
    assert values["loss_low"] != found["loss_low"]
    assert values["loss_se"] == pytest.approx(found["loss_se"], rel=0.3)


def test_scalars_of_a_step_have_bars():
    exp = Linear(jnp.asarray(TRUE), "scalars")
    values = solstice.Trainer().test(exp, batches(64, 64), **BARS)
    losses = -np.asarray(jax.nn.log_softmax(X @ TRUE))[np.arange(N), Y]
    assert values["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert values["loss_se"] == pytest.approx(losses.std() / np.sqrt(N), rel=0.2)
    assert values["nested/square_low"] < values["nested/square"] < values["nested/square_high"]


def test_metrics_whose_merge_is_not_a_sum():
    exp = Linear(jnp.asarray(TRUE), "regression")
    plain = solstice.Trainer().test(exp, batches(64, 64))
    found = solstice.Trainer().test(exp, batches(64, 64), **BARS)
    assert found["r2"] == pytest.approx(plain["r2"], rel=1e-4)
    other = solstice.Trainer().test(exp, batches(9), **BARS)
    assert other["pearson_low"] == pytest.approx(found["pearson_low"], rel=1e-3)


class Highest(solstice.Metrics):
    top: jax.Array

    def merge(self, other):
        return Highest(jnp.maximum(self.top, other.top))

    def compute(self):
        return {"top": self.top}


def test_a_maximum_of_the_user_and_a_last_call_of_fewer_steps():
    class Maximum(Linear):
        def eval_step(self, batch):
            return self, Highest(jnp.max(batch[0][:, 0]) - 100)

    trainer = solstice.Trainer(steps_per_call=4)
    found = trainer.test(Maximum(jnp.asarray(TRUE)), batches(*[25] * 5), **BARS)
    assert found["top"] == pytest.approx(X[:, 0].max() - 100)
    highest = np.sort(X[:, 0])[::-1]
    # The highest example is in 63 % of the replicates, and one of the first five in 99 %.
    assert highest[4] - 100 <= found["top_low"] < found["top"]
    assert found["top_high"] == pytest.approx(found["top"])


def test_metrics_that_keep_all_examples_are_refused():
    exp = Linear(jnp.asarray(TRUE), "curves")
    with pytest.raises(TypeError, match="use metrics of a fixed size, such as BinaryMetrics"):
        solstice.Trainer().test(exp, batches(64), **BARS)


def test_metrics_of_a_batch_that_are_not_those_of_its_examples_are_refused():
    exp = Linear(jnp.asarray(TRUE), "centred")
    with pytest.raises(solstice.ExperimentError, match="each must count by itself"):
        solstice.Trainer().test(exp, batches(64), **BARS)


def test_a_step_that_cannot_be_compiled_is_refused():
    class Eager(Linear):
        def eval_step(self, batch):
            return self, {"loss": float(batch[0].sum())}

    with pytest.raises(solstice.ExperimentError, match="error bars need that"):
        solstice.Trainer().test(Eager(jnp.asarray(TRUE)), batches(64), **BARS)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"confidence": 95}, "between 0 and 1"), ({"confidence": 0.9, "replicates": 5}, "20 or more")],
)
def test_settings_out_of_range_are_refused(exp, given, message):
    with pytest.raises(ValueError, match=message):
        solstice.Trainer().test(exp, batches(64), **given)
    with pytest.raises(ValueError, match="val_confidence must be between 0 and 1"):
        solstice.Trainer(val_confidence=1)


def test_callbacks_see_the_experiment_itself(exp):
    class Look(solstice.Callback):
        needs = ("experiment",)

        def __init__(self):
            self.kinds = set()

        def on_step_end(self, record):
            self.kinds.add(type(record.experiment))

        def on_epoch_end(self, record):
            self.kinds.add(type(record.experiment))

        on_fit_start = on_epoch_start = on_epoch_end

    look = Look()
    trainer = solstice.Trainer([look], val_confidence=0.9)
    trainer.test(exp, batches(64), **BARS)
    trainer.fit(exp, batches(64), batches(64))
    assert look.kinds == {Linear}
    assert type(trainer.experiment) is Linear


def test_check_batch_is_called_with_the_experiment_itself():
    class Checked(Linear):
        def check_batch(self, batch):
            if self.weights is not None and (batch[1] > 1).any():
                raise solstice.DataError("a label above 1")

    with pytest.raises(solstice.DataError, match="a label above 1"):
        solstice.Trainer().test(Checked(jnp.asarray(TRUE)), batches(64), **BARS)
    with pytest.raises(solstice.DataError, match="a label above 1"):
        solstice.Trainer().test(Resampled(Checked(jnp.asarray(TRUE))), batches(64))


# In training.


def test_validations_have_bars_and_training_is_the_same():
    start = Linear(jnp.zeros((4, CLASSES)))
    trainer, plain = solstice.Trainer(val_confidence=0.95), solstice.Trainer()
    trained = trainer.fit(start, batches(50, 50), batches(64), num_epochs=3)
    other = plain.fit(start, batches(50, 50), batches(64), num_epochs=3)
    np.testing.assert_array_equal(trained.weights, other.weights)
    row = trainer.history.rows[-1]
    assert row["loss_low"] < row["loss"] < row["loss_high"]
    assert row["loss"] == pytest.approx(plain.history.rows[-1]["loss"], rel=1e-6)
    assert trainer.validate(trained, batches(64))["loss_low"] == row["loss_low"]
    assert "loss_low" not in trainer.test(trained, batches(64))


def test_early_stopping_by_one_standard_error():
    start = Linear(jnp.zeros((4, CLASSES)))
    stop = solstice.callbacks.EarlyStopping("val/loss", patience=2, min_delta="1se")
    trainer = solstice.Trainer([stop], val_confidence=0.95)
    trainer.fit(start, batches(50, 50), batches(75), num_epochs=200)
    rows = [row for row in trainer.history.rows if row["mode"] == "val"]
    best, waited = None, 0
    for row in rows:
        improves = best is None or best - row["loss"] > row["loss_se"]
        best, waited = (row["loss"], 0) if improves else (best, waited + 1)
    assert waited == 2
    assert 3 < len(rows) < 200
    assert stop.best == best


def test_one_standard_error_needs_bars():
    with pytest.raises(ValueError, match='needs a "val/" metric'):
        solstice.callbacks.EarlyStopping("train/loss", min_delta="1se")
    stop = solstice.callbacks.EarlyStopping("val/loss", min_delta="1se")
    with pytest.raises(KeyError, match="val_confidence="):
        solstice.Trainer([stop]).fit(Linear(jnp.zeros((4, 3))), batches(64), batches(64))


# Populations, and the short forms.


def population(seed, number=4, apart=0.3):
    keys = jax.random.split(jax.random.key(seed), number)
    return solstice.Population(
        [Linear(jnp.asarray(TRUE) + apart * jax.random.normal(k, (4, CLASSES))) for k in keys]
    )


def test_each_member_has_its_bars():
    pop = population(0)
    found = solstice.test(pop, batches(64), callbacks=[], **BARS)
    for index in range(len(pop)):
        alone = solstice.test(pop[index], batches(64), callbacks=[], **BARS)
        for name in ("loss", "loss_low", "score.accuracy_high", "score.f1_macro_se"):
            assert found[name][index] == pytest.approx(alone[name], rel=1e-5)


class MeanOfBatch(solstice.Experiment):
    def train_step(self, batch):
        return self, {}

    def eval_step(self, batch):
        return self, {"mean": jnp.mean(batch)}


@pytest.mark.parametrize("count", [1, 2, 9, 10])
def test_few_examples_have_no_bounds(count):
    # Of 9 examples, 1 replicate in 8,000 is empty, and its value would be 0.
    values = solstice.Trainer().test(
        MeanOfBatch(), [np.arange(5.0, 5 + count, dtype=np.float32)], confidence=0.9
    )
    bounds = [values[f"mean_{end}"] for end in ("low", "high", "se")]
    assert values["mean"] == 4.5 + count / 2
    assert np.isnan(bounds).all() if count < 10 else 5 < bounds[0] < bounds[1] < 14
