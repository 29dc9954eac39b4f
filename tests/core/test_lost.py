"""A compiled call that fails takes the Experiment with it; then the run says so."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.callbacks import Checkpoint

FAILS_AT = 70


class Calls(solstice.Experiment):
    """Its step calls the host, which may refuse."""

    count: Any
    total: Any
    refuses: Any

    def train_step(self, batch: Any) -> Any:
        def host(count: Any, refuses: Any) -> Any:
            if refuses and count == FAILS_AT:
                raise ValueError("the host refuses")
            return np.float32(1)

        one = jax.pure_callback(
            host, jax.ShapeDtypeStruct((), jnp.float32), self.count, self.refuses
        )
        new = solstice.replace(self, count=self.count + 1, total=self.total + one * batch.sum())
        return new, {}

    def eval_step(self, batch: Any) -> Any:
        return self, {}


class Hears(solstice.Callback):
    """Reads the record of an exception."""

    every = None

    def on_exception(self, record: solstice.Record, error: BaseException) -> None:
        self.count = int(record.experiment.count)  # pyright: ignore[reportAttributeAccessIssue]


class Watches(solstice.Callback):
    """May stop at any step, so that no memory is reused."""

    def on_step_end(self, record: solstice.Record) -> None:
        pass


BATCHES = [np.full(3, i, np.float32) for i in range(50)]


def begin(*, refuses: bool = True) -> Calls:
    return Calls(jnp.zeros((), jnp.int32), jnp.zeros(1000), jnp.asarray(refuses))


def fails(trainer: solstice.Trainer, exp: Calls) -> Any:
    with pytest.raises(Exception, match="host refuses") as caught:
        trainer.fit(exp, BATCHES, num_epochs=2)
    return caught.value


def test_an_experiment_that_is_lost_is_told_of_and_the_run_goes_on_from_a_checkpoint(
    tmp_path: Path,
):
    saver, hears = Checkpoint(tmp_path, every=20), Hears()
    trainer, exp = solstice.Trainer([saver, hears]), begin()
    error = fails(trainer, exp)
    notes = "\n".join(error.__notes__)
    assert "The Experiment is lost" in notes
    assert 'resume="last"' in notes
    assert "newest Experiment" not in notes
    assert "The Experiment is lost" in notes.split("on_exception raised")[1].splitlines()[0]
    assert not hasattr(error, "experiment")
    assert not hasattr(hears, "count")
    with pytest.raises(RuntimeError, match="The Experiment is lost"):
        _ = trainer.experiment

    assert int(exp.count) == 0  # what was given is as it was
    saved = solstice.checkpoint.load(saver.find("last") or "", like=exp)
    assert 0 < int(saved.count) <= FAILS_AT

    calm = begin(refuses=False)
    path = tmp_path / "calm"
    solstice.checkpoint.save(path, solstice.replace(saved, refuses=jnp.asarray(False)),
                             note=solstice.checkpoint.manifest(saver.last)["note"])  # fmt: skip
    with pytest.warns(UserWarning, match="`.refuses` was True when the run started and is False"):
        resumed = solstice.Trainer().fit(calm, BATCHES, num_epochs=2, resume=path)
    whole = solstice.Trainer().fit(calm, BATCHES, num_epochs=2)
    assert int(resumed.count) == 100
    np.testing.assert_array_equal(resumed.total, whole.total)


@pytest.mark.parametrize("donate", [False, True])
def test_what_was_given_is_lost_too_if_it_was_given_up(donate: bool):
    trainer, exp = solstice.Trainer(), begin()
    with pytest.raises(Exception, match="host refuses") as caught:
        trainer.fit(exp, BATCHES, num_epochs=2, donate=donate)
    notes = "\n".join(caught.value.__notes__)
    assert "The Experiment is lost" in notes
    assert ("given to `fit` was given up (`donate=True`)" in notes) == donate
    assert ("given to `fit` is unchanged" in notes) == (not donate)
    assert exp.total.is_deleted() == donate


@pytest.mark.parametrize("steps_per_call", [1, 8, None])
def test_what_the_error_says_holds_where_memory_is_not_reused(steps_per_call: int | None):
    hears = Hears()
    trainer = solstice.Trainer([Watches(), hears], steps_per_call=steps_per_call)
    error = fails(trainer, begin())
    notes = "".join(error.__notes__)
    if "The Experiment is lost" in notes:  # the device was ahead, or not: that is its choice
        with pytest.raises(RuntimeError, match="The Experiment is lost"):
            _ = trainer.experiment
    else:
        newest: Any = trainer.experiment
        assert int(newest.count) == hears.count == int(error.experiment.count)
        assert f"The newest Experiment, after step {newest.count}," in notes


def test_an_error_elsewhere_loses_nothing():
    class Raises(solstice.Callback):
        every = 30

        def on_step_end(self, record: solstice.Record) -> None:
            raise ValueError("the host refuses, and is no step")

    trainer = solstice.Trainer([Raises()])
    error = fails(trainer, begin())
    assert int(error.experiment.count) == int(trainer.experiment.count) == 30  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("run", ["fit", "validate", "predict"])
def test_an_experiment_that_was_donated_elsewhere_is_refused(run: str):
    exp, trainer = begin(refuses=False), solstice.Trainer()
    exp.total.delete()
    with pytest.raises(ValueError, match=r"array `\.total` of the Calls .* donate") as caught:
        getattr(trainer, run)(exp, BATCHES)
    assert not getattr(caught.value, "__notes__", [])


def test_an_evaluation_that_fails_loses_nothing():
    class Evaluates(Calls):
        def eval_step(self, batch: Any) -> Any:
            return self.train_step(batch)[0], {}

    exp = Evaluates(jnp.asarray(FAILS_AT, jnp.int32), jnp.zeros(1000), jnp.asarray(True))
    trainer = solstice.Trainer()
    with pytest.raises(Exception, match="host refuses"):
        trainer.validate(exp, BATCHES)
    assert trainer.experiment is exp


class Slow(solstice.Experiment):
    """Multiplies for a while, and has no metrics that somebody could read."""

    total: Any

    def train_step(self, batch: Any) -> Any:
        def product(_: Any, total: Any) -> Any:
            return jnp.tanh(total @ total)

        total = jax.lax.fori_loop(0, 30, product, self.total + batch.sum())
        return solstice.replace(self, total=total), {}

    def eval_step(self, batch: Any) -> Any:
        return self, {}


@pytest.mark.parametrize("on_device", [False, True])
def test_a_run_ends_after_its_last_step(on_device: bool):
    """Else a step that fails at the end would not fail the run."""
    start, x = Slow(jnp.eye(300)), np.ones((4, 1), np.float32)
    data = solstice.data.batches(x, 1, on_device=on_device)
    for _ in range(2):  # the first run compiles
        trained = solstice.Trainer().fit(start, data)
        assert trained.total.is_ready()
