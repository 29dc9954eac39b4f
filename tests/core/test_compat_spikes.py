"""Steps left out because their gradient is far larger than those before."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import checkpoint
from solstice.callbacks import Checkpoint, FlightRecorder, History
from solstice.compat import ema, freeze, skip_nonfinite, skip_spikes, spikes_of, track_norms
from solstice.data import Masked
from solstice.testing import OptimizerConformance, Sgd


class TestSkipSpikes(OptimizerConformance):
    def build(self, *, learning_rate):
        # Gradient descent to a quadratic: no norm is above an earlier one.
        return skip_spikes(Sgd(learning_rate))


# The decision, against a list of Python


def by_hand(norms, times, window):
    """Which steps are skipped, in plain Python."""
    known, in_a_row, skipped = [], 0, []
    for norm in norms:
        enough = len(known) >= min(5, window)
        limit = times * np.median(known[-window:]) if enough else np.inf
        is_spike = not np.isfinite(norm) or norm > limit
        skipped.append(bool(is_spike))
        in_a_row = in_a_row + 1 if is_spike else 0
        if not is_spike and norm > 0:
            known.append(norm)
        if in_a_row == window:
            known, in_a_row = [], 0
    return skipped


DESCENT = Sgd(1.0, momentum=0.0)


@partial(jax.jit, static_argnums=0)
def scanned(optimizer, gradients):
    def step(carry, gradient):
        params, state = carry
        new = optimizer.step(gradient, state, params)
        return new, new[1][1].skipped - state[1].skipped

    params = jnp.zeros(2)
    return jax.lax.scan(step, (params, optimizer.init(params)), gradients)


def decided(optimizer, norms):
    """Which steps are skipped, and the last params and state."""
    gradients = np.zeros((len(norms), 2), np.float32)
    gradients[:, 0] = norms
    (params, state), skipped = scanned(optimizer, gradients)
    return [bool(s) for s in np.asarray(skipped)], params, state


# Powers of two: their norms, medians and multiples are exact.
NORM = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 1024.0, np.inf, np.nan])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(NORM, min_size=40, max_size=40), st.sampled_from([(4, 1), (1.5, 2), (2, 5), (2, 12)])
)
def test_steps_are_skipped_as_by_hand(norms, how):
    times, window = how
    skipped, params, state = decided(skip_spikes(DESCENT, times, window), norms)
    assert skipped == by_hand(norms, times, window)
    taken = [norm for norm, is_skipped in zip(norms, skipped, strict=True) if not is_skipped]
    np.testing.assert_allclose(params[0], -sum(taken))
    assert int(state[1].skipped) == sum(skipped)
    np.testing.assert_array_equal(state[1].norm, np.float32(norms[-1]))


def test_a_limit_that_is_met_is_no_spike():
    norms = [1.0] * 5 + [3.0, 3.01, 1.0]
    skipped, _, state = decided(skip_spikes(DESCENT), norms)
    assert skipped == [False] * 6 + [True, False]
    assert float(state[1].limit) == 3.0


def test_a_gradient_that_stays_larger_is_learned_from_again():
    """Else a run would go on without training, and say nothing."""
    skipped, _, _ = decided(skip_spikes(DESCENT, window=5), [1.0] * 9 + [100.0] * 20)
    assert skipped == [False] * 9 + [True] * 5 + [False] * 15


def test_masked_batches_do_not_make_the_next_one_a_spike():
    skipped, _, _ = decided(skip_spikes(DESCENT, window=4), [0.0, 1.0] * 10)
    assert not any(skipped)


@pytest.mark.parametrize("times", [1.0, 0.0, -3.0, np.nan, np.inf, "3"])
def test_a_spike_is_more_than_the_median(times):
    with pytest.raises(ValueError, match=r"times must be more than 1, such as 3\.0"):
        skip_spikes(Sgd(0.1), times)


@pytest.mark.parametrize("wrap", [ema, track_norms, lambda o: freeze(o, "frozen")])
def test_a_skipped_step_changes_nothing_around_it(wrap):
    """The average does not move either."""
    optimizer = wrap(skip_spikes(ema(Sgd(0.5), 0.5), 2.0, 1))
    params = {"w": jnp.float32(1), "frozen": jnp.float32(5)}

    def grads(value):
        return {"w": jnp.float32(value), "frozen": jnp.float32(0)}

    params, state = optimizer.step(grads(1.0), optimizer.init(params), params)
    after, new = optimizer.step(grads(2.5), state, params)
    assert checkpoint.diff(after, params) == {}
    average, same = optimizer.eval_params(state, params), optimizer.eval_params(new, after)
    assert checkpoint.diff(average, same) == {}
    (spikes,) = spikes_of(new)
    assert (int(spikes.skipped), float(spikes.norm), float(spikes.limit)) == (1, 2.5, 2.0)


def test_a_tree_without_spikes_has_none():
    assert spikes_of({"a": jnp.ones(2)}) == []
    assert spikes_of(skip_nonfinite(Sgd(0.1)).init(jnp.ones(2))) == []


# In a run

STEPS, SPIKES = 30, (12, 13, 20, 27)


def batches(spikes):
    """Batches of a regression; those of `spikes` have targets of 1e4."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, 8, 3)).astype(np.float32)
    y = x @ np.float32([1, -2, 3]) + rng.normal(size=(STEPS, 8)).astype(np.float32)
    y[list(spikes)] = 1e4
    return list(zip(x, y, strict=True))


def experiment(optimizer=None, **options):
    net = eqx.nn.Linear(3, 1, key=jax.random.key(0))
    optimizer = skip_spikes(Sgd(0.01, momentum=0.0)) if optimizer is None else optimizer
    return solstice.RegressionExperiment(net, optimizer, **options)


def test_a_run_leaves_spikes_out_as_if_these_batches_were_masked():
    spiked = [Masked(batch, np.ones(8, bool)) for batch in batches(SPIKES)]
    masked = [
        Masked(batch, np.full(8, index not in SPIKES)) for index, batch in enumerate(batches(()))
    ]
    trainer = solstice.Trainer()
    found = trainer.fit(experiment(), spiked)
    expected = solstice.Trainer().fit(experiment(), masked)
    (spikes,), (none,) = spikes_of(found), spikes_of(expected)
    np.testing.assert_array_equal(found.params.weight, expected.params.weight)
    np.testing.assert_array_equal(found.params.bias, expected.params.bias)
    np.testing.assert_array_equal(spikes.window, none.window)
    assert (int(spikes.skipped), int(none.skipped)) == (len(SPIKES), 0)
    assert trainer.history.rows[-1]["skipped"] == len(SPIKES)
    assert int(found.step) == STEPS


def test_a_resumed_run_skips_the_same_steps(tmp_path):
    """It is cut between two spikes, so the second one needs the window of before."""
    plain = solstice.Trainer().fit(experiment(), batches(SPIKES))
    folder = tmp_path / "a"
    solstice.Trainer([Checkpoint(folder, every=13)]).fit(
        experiment(), batches(SPIKES), max_steps=13
    )
    trainer = solstice.Trainer()
    resumed = trainer.fit(experiment(), batches(SPIKES), resume=folder / "step-13")
    assert checkpoint.diff(plain, resumed) == {}
    assert trainer.history.rows[-1]["skipped"] == len(SPIKES)


def test_micro_batches_are_judged_together():
    plain = solstice.Trainer().fit(experiment(), batches(SPIKES))
    parts = solstice.Trainer().fit(experiment(micro_batches=2), batches(SPIKES))
    (one,), (other,) = spikes_of(plain), spikes_of(parts)
    assert int(one.skipped) == int(other.skipped) == len(SPIKES)
    np.testing.assert_allclose(one.window, other.window, rtol=1e-4)


def test_each_member_of_a_population_has_its_own_norms():
    def make(rate):
        return eqx.tree_at(lambda exp: exp.learner.params.weight, whole, rate * jnp.ones((1, 3)))

    # The second member starts so far away that its own gradient hides the spikes.
    whole = experiment(sample_input=batches(())[0][0])
    trainer = solstice.Trainer()
    population = trainer.fit(solstice.Population(make, rate=[1.0, 1e9]), batches(SPIKES))
    (spikes,) = spikes_of(population)
    assert spikes.skipped.tolist() == [len(SPIKES), 0]
    assert list(trainer.history.rows[-1]["skipped"]) == [len(SPIKES), 0]


def test_both_optimisers_of_a_gan_count():
    def net(size_in, size_out):
        return eqx.nn.Linear(size_in, size_out, key=jax.random.key(0))

    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    gan = solstice.GANExperiment(
        net(2, 3),
        net(3, 1),
        skip_spikes(Sgd(0.1), 1.001, 1),
        discriminator_optimizer=Sgd(0.1),
        latent_size=2,
    )
    trainer = solstice.Trainer()
    trained = trainer.fit(gan, x, batch_size=8)
    (spikes,) = spikes_of(trained)
    row = trainer.history.rows[-1]
    assert row["generator_skipped"] == int(spikes.skipped) > 0
    assert "discriminator_skipped" not in row


# FlightRecorder(on="spike")


@pytest.mark.parametrize("every", [4, 100])
def test_the_first_spike_is_recorded_and_the_run_goes_on(tmp_path, every, caplog):
    recorder = FlightRecorder(tmp_path / "flight", every=every, on="spike")
    trainer = solstice.Trainer([History(every=2), recorder])
    recorded = trainer.fit(experiment(), batches(SPIKES))
    (line,) = [line for line in caplog.messages if "were skipped" in line]
    assert f"`solstice.replay({str(tmp_path / 'flight')!r}, exp, train_ds)`" in line
    plain = solstice.Trainer().fit(experiment(), batches(SPIKES))
    assert checkpoint.diff(plain, recorded) == {}
    found = solstice.replay(tmp_path / "flight", experiment(), batches(SPIKES))
    assert (found.step, found.nonfinite) == (SPIKES[0] + 1, [])
    np.testing.assert_array_equal(found.batch[1], np.full(8, 1e4))
    assert checkpoint.diff(found.before.params, found.after.params) == {}
    assert "spikes" in found.error


def test_a_run_without_a_spike_records_nothing(tmp_path):
    recorder = FlightRecorder(tmp_path / "flight", every=4, on="spike")
    solstice.Trainer([recorder]).fit(experiment(), batches(()))
    assert not (tmp_path / "flight").exists()


def test_a_failure_before_the_first_spike_is_recorded_as_ever(tmp_path):
    recorder = FlightRecorder(tmp_path / "flight", every=4, on="spike")

    class Fails(solstice.Callback):
        def on_step_end(self, record):
            if record.step == 6:
                raise FloatingPointError("planted")

    with pytest.raises(FloatingPointError):
        solstice.Trainer([Fails(), recorder]).fit(experiment(), batches(()))
    found = solstice.replay(tmp_path / "flight", experiment(), batches(()))
    assert "planted" in found.error


def test_a_recorder_of_spikes_needs_an_optimiser_that_skips_them(tmp_path):
    trainer = solstice.Trainer([FlightRecorder(tmp_path, on="spike")])
    with pytest.raises(ValueError, match=r"create it with `solstice\.compat\.skip_spikes\(opt"):
        trainer.fit(experiment(Sgd(0.1)), batches(()))
    with pytest.raises(ValueError, match="on must be"):
        FlightRecorder(tmp_path, on="nan")
