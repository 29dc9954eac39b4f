"""solstice.compare_models: paired by example, and over the seeds of populations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import _comparison
from solstice.resampling import Distribution, poisson_weights

N = 120
RNG = np.random.default_rng(0)
HARD = RNG.normal(size=N).astype(np.float32)
"""How hard each example is, for all models."""


class Model(solstice.Experiment):
    """Its loss on an example is how hard that is, and its own noise."""

    shift: jax.Array
    noise: jax.Array
    has_more: bool = eqx.field(static=True, default=False)

    def train_step(self, batch):
        return self, {"loss": jnp.zeros(())}

    def eval_step(self, batch):
        hard, row = batch
        losses = hard + self.shift + 0.1 * jnp.sin(self.noise * row)
        found = {"loss": jnp.mean(losses)}
        return self, found | ({"only": jnp.mean(losses**2)} if self.has_more else {})


def model(shift, noise=1.0, **more):
    return Model(jnp.float32(shift), jnp.float32(noise), **more)


DATA = HARD, np.arange(N, dtype=np.float32)


def compare(a, b, **options):
    return solstice.compare_models(a, b, DATA, batch_size=50, replicates=400, **options)


def test_the_comparison_is_paired():
    a, b = model(0.05, 1.0), model(0.0, 2.0)
    found = compare(a, b)["loss"]
    losses = [np.asarray(HARD + e.shift + 0.1 * np.sin(e.noise * DATA[1])) for e in (a, b)]
    assert found.a == pytest.approx(losses[0].mean(), abs=1e-6)
    assert found.difference == pytest.approx((losses[0] - losses[1]).mean(), abs=1e-6)
    # Each loss has a standard error of 1 / sqrt(n); their difference, of a tenth of it.
    error = (losses[0] - losses[1]).std() / np.sqrt(N)
    assert found.high - found.low == pytest.approx(2 * 1.98 * error, rel=0.25)
    assert found.is_significant
    assert found.p < 0.01
    plain = solstice.test(a, DATA, batch_size=50, callbacks=[], confidence=0.95)
    assert plain["loss_high"] - plain["loss_low"] > 5 * (found.high - found.low)


def test_it_is_antisymmetric_and_finds_nothing_in_a_model_and_itself():
    a, b = model(0.02), model(0.0, 2.0)
    one, other = compare(a, b)["loss"], compare(b, a)["loss"]
    assert other.difference == pytest.approx(-one.difference)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), rel=1e-6)
    assert other.p == pytest.approx(one.p)
    same = compare(a, a)["loss"]
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert not same.is_significant
    assert same.p > 0.9


def test_the_sentence_says_what_was_found():
    text = str(compare(model(0.5), model(0.0, 2.0), confidence=0.9)["loss"])
    assert text.startswith("loss: ")
    assert "90 % interval" in text
    assert text.endswith("is significant.")
    assert "not significant" in str(compare(model(0), model(0))["loss"])


def test_only_metrics_of_both_are_compared():
    found = compare(model(0), model(0, has_more=True))
    assert [*found] == ["loss"]
    assert repr(found) == str(found["loss"])
    with pytest.raises(KeyError, match="there are: loss"):
        found["only"]


def test_what_cannot_be_compared_is_refused():
    pop = solstice.Population([model(0), model(0.1)])
    with pytest.raises(TypeError, match="two Experiments, or two populations"):
        compare(pop, model(0))
    with pytest.raises(TypeError, match="b must be a solstice"):
        compare(model(0), None)


def test_populations_are_compared_over_seeds():
    rng = np.random.default_rng(1)
    shifts = rng.normal(0, 0.2, (2, 4))
    pops = [solstice.Population([model(x, k) for k, x in enumerate(row, 1)]) for row in shifts]
    found = compare(*pops)["loss"]
    assert found.difference == pytest.approx(shifts[0].mean() - shifts[1].mean(), abs=0.02)
    # Nearly all of the variance is that of the seeds: a t-test of their values by Welch.
    error = np.sqrt(shifts.var(axis=1, ddof=1).sum() / 4)
    assert (found.high - found.low) / 2 == pytest.approx(2.5 * error, rel=0.25)
    alone = compare(pops[0][0], pops[1][0])["loss"]
    assert alone.high - alone.low < (found.high - found.low) / 5


def distribution(values, replicates):
    named = {"a": values[0], "b": values[1]}
    return Distribution.of(named, dict(zip("ab", replicates, strict=True)), 400)


def test_equal_models_differ_significantly_in_5_percent_of_comparisons():
    rng = np.random.default_rng(2)
    weights = np.array(poisson_weights(jnp.arange(400), 500))
    weights /= weights.sum(axis=1, keepdims=True)
    alarms = {1: 0, 4: 0}
    for _ in range(400):
        hard = rng.normal(size=(400, 1))
        for members in alarms:
            seeds = 0.05 * rng.normal(size=2 * members) if members > 1 else 0.0
            right = (1 + seeds + hard + rng.normal(size=(400, 2 * members))) > 0
            means, each = right.mean(axis=0), weights @ right
            parts = np.split(means, 2), np.split(each, 2, axis=1)
            if members == 1:
                parts = [[x[..., 0] for x in part] for part in parts]
            found = _comparison.difference("a", distribution(*parts), "a", "b", 0.95)
            alarms[members] += found.is_significant
    assert 8 <= alarms[1] <= 34  # 20 are expected, with a standard deviation of 4.4
    assert 8 <= alarms[4] <= 34


def test_mean_metrics_of_populations_that_lost_a_member():
    values = np.array([0.5, np.nan, 0.7, 0.6])
    each = values + np.random.default_rng(3).normal(0, 0.1, (200, 4))
    found = _comparison.difference(
        "a", distribution((values, values), (each, each)), "a", "b", 0.95
    )
    assert found.a == pytest.approx(0.6)
    assert found.low < 0 < found.high
