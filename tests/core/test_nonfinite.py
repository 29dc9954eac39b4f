"""Runs whose numbers stop being finite: ended, gone on without, and run once more."""

import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import checkpoint
from solstice.callbacks import Checkpoint, FlightRecorder, History, NaNGuard
from solstice.compat import skip_nonfinite
from solstice.data import batches
from solstice.testing import OptimizerConformance, Sgd

ROWS = 60
BAD = 37
"""The row whose feature is infinite: it comes in step 9 of the first epoch of batches of 4."""


class Weighted(solstice.Experiment):
    """A step that goes wrong at one row."""

    weight: jax.Array
    best: jax.Array

    def train_step(self, batch):
        x, _ = batch
        loss, grad = jax.value_and_grad(lambda w: jnp.mean(jnp.square(x @ w - 1)))(self.weight)
        new = solstice.replace(self, weight=self.weight - 0.1 * grad)
        return new, {"loss": loss}

    def eval_step(self, batch):
        return self, {"loss": jnp.zeros(())}


def experiment():
    return Weighted(jnp.zeros(3), jnp.asarray(jnp.inf))


def data(bad=BAD):
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    if bad is not None:
        x[bad, 1] = np.inf
    return batches((x, np.arange(ROWS)), 4)


@pytest.mark.parametrize(("every", "step"), [(1, 10), (4, 12), (100, 15)])
def test_a_guard_ends_the_run_and_names_the_array(every, step):
    """What is infinite from the beginning, the best of no losses, is left alone."""
    trainer = solstice.Trainer([NaNGuard(every=every)])
    with pytest.raises(FloatingPointError, match=rf"at step {step}, .* `\.weight` became NaN"):
        trainer.fit(experiment(), data(), num_epochs=2)


def test_a_guard_lets_what_is_finite_pass():
    plain = solstice.Trainer().fit(experiment(), data(None), num_epochs=2)
    guarded = solstice.Trainer([NaNGuard(every=3)]).fit(experiment(), data(None), num_epochs=2)
    assert checkpoint.diff(plain, guarded) == {}


class Descent(solstice.Experiment):
    """Its weight diverges if the rate is above 1."""

    weight: jax.Array
    rate: jax.Array
    empty: jax.Array

    def train_step(self, batch):
        grad = 2 * (self.weight - jnp.mean(batch[0]))
        return solstice.replace(self, weight=self.weight - self.rate * grad), {"loss": grad}

    def eval_step(self, batch):
        return self, {"loss": self.weight}


def make(rate):
    return Descent(jnp.ones(()), jnp.asarray(rate), jnp.ones(0))


def guarded_population(rates, callbacks=(), **fit):
    guard = NaNGuard(every=5)
    trainer = solstice.Trainer([guard, *callbacks])
    pop = solstice.Population(make, rate=rates)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trained = trainer.fit(pop, data(None), **fit)
    return trained, trainer, [str(w.message) for w in said if "became NaN" in str(w.message)]


def test_a_member_of_a_population_is_named_once_and_the_others_train_on():
    trained, trainer, said = guarded_population([0.1, 1e9, 0.2], num_epochs=3)
    (line,) = said
    assert re.match(r"at step 5, or up to 5 before, members 1 of the population became NaN", line)
    assert "the others train on" in line
    plain = solstice.Trainer().fit(
        solstice.Population(make, rate=[0.1, 1e9, 0.2]), data(None), num_epochs=3
    )
    assert checkpoint.diff(plain, trained) == {}
    values = trainer.history.rows[-1]["loss"]
    assert np.isfinite(values).tolist() == [True, False, True]


def test_a_population_of_which_all_members_are_lost_ends():
    with pytest.raises(
        FloatingPointError, match=r"`\.weight` became NaN or infinite in all members"
    ):
        guarded_population([1e9, 1e12], num_epochs=3)


def test_a_resumed_guard_remembers_the_lost_members(tmp_path):
    """Members 1 and 2 were lost before; the last one is lost after."""
    keeps = Checkpoint(tmp_path / "a", every=5)
    fit = {"num_epochs": 4, "resume": "last"}
    first = guarded_population([3.0, 1e9, 1e12], [keeps], **fit, max_steps=10)
    assert len(first[2]) == 1
    with pytest.raises(FloatingPointError, match="in all members"):
        guarded_population([3.0, 1e9, 1e12], [Checkpoint(tmp_path / "a", every=5)], **fit)


def test_the_last_checkpoint_is_a_good_one(tmp_path):
    saves = Checkpoint(tmp_path / "a", every=4, keep=9)
    with pytest.raises(FloatingPointError):
        solstice.Trainer([saves, NaNGuard(every=4)]).fit(experiment(), data(), num_epochs=2)
    assert saves.last == tmp_path / "a" / "step-8"
    loaded = checkpoint.load(saves.last, like=experiment())
    assert np.isfinite(loaded.weight).all()


@pytest.mark.parametrize("every", [1, 4, 100])
@pytest.mark.parametrize("guard", [1, 5])
def test_the_step_that_failed_is_run_once_more(tmp_path, every, guard):
    callbacks = [History(every=2), NaNGuard(every=guard), FlightRecorder(tmp_path, every=every)]
    with pytest.raises(FloatingPointError) as raised:
        solstice.Trainer(callbacks).fit(experiment(), data(), num_epochs=2)
    assert "solstice.replay(" in raised.value.__notes__[0]
    found = solstice.replay(tmp_path, experiment(), data())
    assert found.step == 10
    assert found.nonfinite == ["batch[0]", "outputs['loss']", "experiment.weight"]
    np.testing.assert_array_equal(found.batch[1], np.arange(36, 40))
    assert np.isfinite(found.before.weight).all()
    assert "FloatingPointError" in found.error
    again, outputs = found.before.train_step(found.batch)
    np.testing.assert_array_equal(again.weight, found.after.weight)
    np.testing.assert_array_equal(outputs["loss"], found.outputs["loss"])
    assert "step=10" in repr(found)


def test_a_recorder_changes_no_bit_and_writes_nothing_if_all_is_well(tmp_path):
    plain = solstice.Trainer().fit(experiment(), data(None), num_epochs=2)
    recorder = FlightRecorder(tmp_path / "a", every=1)
    recorded = solstice.Trainer([recorder]).fit(experiment(), data(None), num_epochs=2)
    assert checkpoint.diff(plain, recorded) == {}
    assert not (tmp_path / "a").exists()


def test_a_run_that_failed_by_its_data_fails_again(tmp_path):
    def failing(epoch):
        for index, batch in enumerate(data(None)):
            if index == 7:
                raise OSError("the disk is gone")
            yield batch

    trainer = solstice.Trainer([FlightRecorder(tmp_path, every=2)])
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(experiment(), failing)
    with pytest.raises(OSError, match="the disk is gone"):
        solstice.replay(tmp_path, experiment(), failing)
    found = solstice.replay(tmp_path, experiment(), data(None))
    assert (found.step, found.nonfinite) == (8, [])


def test_what_is_no_recording_is_told(tmp_path):
    checkpoint.save(tmp_path / "a", experiment())
    with pytest.raises(checkpoint.CheckpointError, match="was not written by a FlightRecorder"):
        solstice.replay(tmp_path / "a", experiment(), data())
    with pytest.raises(ValueError, match="every must be 1 or more"):
        FlightRecorder(tmp_path, every=0)


@pytest.mark.slow
def test_another_process_runs_it_once_more(tmp_path):
    with pytest.raises(FloatingPointError):
        solstice.Trainer([NaNGuard(every=5), FlightRecorder(tmp_path)]).fit(experiment(), data())
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import solstice, {__name__.rpartition(".")[2]} as t
        t.Weighted.__module__ = {Weighted.__module__!r}
        print(solstice.replay({str(tmp_path)!r}, t.experiment(), t.data()).nonfinite)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.strip() == "['batch[0]', \"outputs['loss']\", 'experiment.weight']"


# Updates that are left out


class TestSkipNonfinite(OptimizerConformance):
    def build(self, *, learning_rate):
        return skip_nonfinite(Sgd(learning_rate))


@pytest.mark.parametrize("where", ["gradient", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_out_and_counted(where, bad):
    optimizer = skip_nonfinite(Sgd(0.5))
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    good = {"a": jnp.ones(2), "b": jnp.ones(3)}
    state = optimizer.init(params)
    once, state = optimizer.step(good, state, params, value=jnp.ones(()))
    wrong = {**good, "b": good["b"].at[1].set(bad)} if where == "gradient" else good
    value = jnp.asarray(bad if where == "value" else 1.0)
    same, after = optimizer.step(wrong, state, once, value=value)
    assert checkpoint.diff(same, once) == {}
    assert checkpoint.diff(after[0], state[0]) == {}
    assert (int(state[1]), int(after[1])) == (0, 1)
    twice, after = optimizer.step(good, after, same)
    assert checkpoint.diff(twice, optimizer.step(good, state, once)[0]) == {}
    assert int(after[1]) == 1


def test_a_run_goes_on_without_bad_batches():
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    x[13, 2] = np.inf

    def fit(optimizer, ds):
        net = eqx.nn.Linear(3, 1, key=jax.random.key(0))
        exp = solstice.BinaryClassificationExperiment(net, optimizer, sample_input=x)
        return exp.train(ds, callbacks=[])

    whole = list(batches((x, y), 4))
    skipped = fit(skip_nonfinite(Sgd(0.3)), whole)
    without = fit(Sgd(0.3), whole[:3] + whole[4:])
    # Two programs, which may round otherwise.
    np.testing.assert_allclose(skipped.params.weight, without.params.weight, rtol=1e-5)
    assert int(skipped.opt_state[1]) == 1
