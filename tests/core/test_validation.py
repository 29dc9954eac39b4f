"""Validation within an epoch: when, in what order, and that it changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import Phase
from solstice.callbacks import Checkpoint, EarlyStopping, History


class Sum(solstice.Experiment):
    """A running sum; evaluation tells what it is, and would double it."""

    total: jax.Array

    def train_step(self, batch):
        return solstice.replace(self, total=self.total + jnp.sum(batch)), {"sum": jnp.sum(batch)}

    def eval_step(self, batch):
        return solstice.replace(self, total=2 * self.total), {"total": self.total}


class Heard(solstice.Callback):
    """Notes the moments of steps and epochs in a list that several share."""

    def __init__(self, name, phase, notes, every=1):
        self.name, self.phase, self.notes, self.every = name, phase, notes, every

    def on_step_end(self, record):
        if record.mode == "train":
            self.notes.append((self.name, "step", record.step))

    def on_epoch_end(self, record):
        what = "epoch" if record.mode == "train" else "validation"
        self.notes.append((self.name, what, record.step))


class StopAt(solstice.Callback):
    def __init__(self, step, phase=Phase.LOG, mode="train"):
        self.step, self.phase, self.mode = step, phase, mode

    def on_step_end(self, record):
        if record.mode == self.mode and record.step == self.step:
            raise solstice.Stop("here")


def zero():
    return Sum(jnp.zeros(()))


def ones(count):
    return [np.ones(1, np.float32)] * count


def validated(history):
    """The steps at which there was a validation, and the totals that it saw."""
    return [(row["step"], row["total"]) for row in history.rows if row["mode"] == "val"]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.sampled_from([1, 3, 32]))
def test_it_comes_at_every_so_many_steps_of_the_run(every, length, num_epochs, size):
    history = History()
    trainer = solstice.Trainer([history], val_every_n_steps=every, steps_per_call=size)
    trained = trainer.fit(zero(), ones(length), ones(1), num_epochs=num_epochs)
    due = range(every, length * num_epochs + 1, every)
    assert validated(history) == [(step, float(step)) for step in due]
    assert trained.total == length * num_epochs
    epochs = [row["step"] for row in history.rows if row["mode"] == "train"]
    assert epochs == [length * (epoch + 1) for epoch in range(num_epochs)]


@pytest.mark.parametrize("every", [2, None])
def test_logs_come_before_it_and_monitors_and_savers_after(every):
    notes = []
    names = ["log", "monitor", "save"]
    callbacks = [Heard(name, Phase[name.upper()], notes, every=2) for name in names[::-1]]
    solstice.Trainer(callbacks, val_every_n_steps=every).fit(zero(), ones(2), ones(1))
    evaluation = [(name, "validation", 2) for name in names]
    step = [(name, "step", 2) for name in names]
    epoch = [(name, "epoch", 2) for name in names]
    if every:
        assert notes == [step[0], *evaluation, *step[1:], *epoch]
    else:
        assert notes == [*step, epoch[0], *evaluation, *epoch[1:]]


def test_early_stopping_counts_validations():
    class Worse(Sum):
        def eval_step(self, batch):
            return self, {"loss": self.total}

    stopping = EarlyStopping(patience=2)
    trainer = solstice.Trainer([stopping], val_every_n_steps=5)
    trained = trainer.fit(Worse(jnp.zeros(())), ones(100), ones(1))
    assert trained.total == 15
    assert stopping.best == 5.0


@pytest.mark.parametrize(
    ("phase", "mode"), [(Phase.LOG, "train"), (Phase.MONITOR, "train"), (Phase.LOG, "val")]
)
def test_a_stop_at_a_step_with_a_validation_ends_the_run_after_it(phase, mode):
    history = History()
    trainer = solstice.Trainer([StopAt(4, phase, mode), history], val_every_n_steps=4)
    assert trainer.fit(zero(), ones(9), ones(3)).total == 4
    seen = 4.0 if mode == "val" else 4.0 * (1 + 2 + 4) / 3  # stopped in its first step, or whole
    assert validated(history) == [(4, pytest.approx(seen))]


def test_a_stop_at_a_step_without_one_ends_the_run_without():
    history = History()
    trainer = solstice.Trainer([StopAt(6), history], val_every_n_steps=4)
    assert trainer.fit(zero(), ones(9), ones(1)).total == 6
    assert validated(history) == [(4, 4.0)]


def test_an_error_in_it_leaves_the_experiment_of_that_step():
    def broken():
        yield np.ones(1, np.float32)
        raise OSError("the disk is gone")

    trainer = solstice.Trainer(val_every_n_steps=3)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        trainer.fit(zero(), ones(9), broken)
    assert trainer.experiment.total == caught.value.experiment.total == 3


def test_the_run_goes_on_as_training_after_it():
    ends = []

    class End(solstice.Callback):
        def on_fit_end(self, record):
            ends.append((record.mode, record.step, record.epoch_step))

    solstice.Trainer([End()], val_every_n_steps=4).fit(zero(), ones(4), ones(2))
    assert ends == [("train", 4, 4)]


def test_a_generator_serves_one_validation_and_the_error_tells_of_the_second():
    def once():
        yield from ones(2)

    trainer = solstice.Trainer(val_every_n_steps=4)
    trainer.fit(zero(), ones(4), once())
    with pytest.raises(solstice.DataError, match="val_ds is a one-shot iterator"):
        trainer.fit(zero(), ones(8), once())
    assert trainer.experiment.total == 8


def test_without_a_validation_set_it_is_refused():
    with pytest.raises(ValueError, match="val_every_n_steps=4 needs a validation set"):
        solstice.Trainer(val_every_n_steps=4).fit(zero(), ones(4))
    with pytest.raises(ValueError, match="val_every_n_steps must be 1 or more"):
        solstice.Trainer(val_every_n_steps=0)


def test_a_callback_may_evaluate_with_the_same_trainer():
    seen = []

    class Tests(solstice.Callback):
        every = 3
        needs = ("experiment",)

        def on_step_end(self, record):
            if record.mode == "train":
                seen.append(trainer.test(record.experiment, ones(40))["total"])

    trainer = solstice.Trainer([Tests()], steps_per_call=8)
    assert trainer.fit(zero(), ones(20)).total == 20
    assert trainer.experiment.total == 20
    expected = [step * (2**40 - 1) / 40 for step in range(3, 19, 3)]
    assert seen == pytest.approx(expected, rel=1e-5)


# Its data: those of the epoch, however often it is validated, with breaks and without


class Mean(Sum):
    def eval_step(self, batch):
        return self, {"mean": jnp.mean(batch)}


def by_epoch(epoch):
    return iter([np.full(1, 10 * epoch + i, np.float32) for i in range(4)])


class SetEpoch:
    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return by_epoch(self.epoch)


class Sampled:
    def __init__(self):
        self.sampler = SetEpoch()

    def __iter__(self):
        return iter(self.sampler)


def shuffled():
    return solstice.data.batches(np.arange(40, dtype=np.float32), 4, shuffle=True)


EPOCHS = {
    "function": lambda: by_epoch,
    "set_epoch": SetEpoch,
    "sampler": Sampled,
    "made": lambda: lambda: SetEpoch(),
    "shuffled": shuffled,
}


def means(make):
    """What a validation on two batches of each epoch gives."""
    found = []
    for epoch in range(3):
        data = shuffled()
        data.set_epoch(epoch)
        batches = list(data) if make is shuffled else list(by_epoch(epoch))
        found.append(float(np.mean(batches[:2])))
    return found


@pytest.mark.parametrize("name", EPOCHS)
@pytest.mark.parametrize(
    "options",
    [{}, {"val_every_n_steps": 2}, {"val_every_n_steps": 5}, {"sanity_val_batches": 1}],
)
@pytest.mark.parametrize("breaks", [(), (4, 8), (1, 5, 7)])
def test_it_is_on_the_data_of_the_epoch(tmp_path, name, options, breaks):
    pytest.importorskip("safetensors")
    for max_steps in [*breaks, None]:
        history = History()
        trainer = solstice.Trainer(
            [history, Checkpoint(tmp_path / "a")], limit_val_batches=2, **options
        )
        trainer.fit(
            Mean(jnp.zeros(())),
            ones(4),
            EPOCHS[name](),
            num_epochs=3,
            max_steps=max_steps,
            resume="last",
            strict_resume=True,
        )
    expected = means(EPOCHS[name])
    rows = [row for row in history.rows if row["mode"] == "val"]
    assert [row["mean"] for row in rows] == [expected[row["epoch"]] for row in rows]
    every = options.get("val_every_n_steps", 4)
    assert {row["step"] for row in rows} >= set(range(every, 13, every))


@pytest.mark.parametrize("name", EPOCHS)
def test_alone_it_is_on_the_data_of_epoch_0(name):
    data, expected = EPOCHS[name](), means(EPOCHS[name])[0]
    trainer = solstice.Trainer(limit_val_batches=2)
    trainer.fit(Mean(jnp.zeros(())), ones(1), data, num_epochs=3)
    assert trainer.validate(Mean(jnp.zeros(())), data) == {"mean": expected}


def test_a_function_of_the_epoch_is_called_for_the_epochs_of_the_run_alone(tmp_path):
    pytest.importorskip("safetensors")
    told = []

    def val_ds(epoch):
        told.append(epoch)
        return by_epoch(epoch)

    for num_epochs in (2, 2, 4):
        trainer = solstice.Trainer([Checkpoint(tmp_path / "a")])
        trainer.fit(zero(), ones(2), val_ds, num_epochs=num_epochs, resume="last")
    assert told == [0, 1, 1, 2, 3]


def test_a_sanity_validation_takes_nothing_from_an_iterator():
    trainer = solstice.Trainer(sanity_val_batches=1, limit_val_batches=2)
    trainer.fit(Mean(jnp.zeros(())), ones(1), by_epoch(0), num_epochs=2)
    assert trainer.history.series("val/mean")[1] == [0.5, 2.5]
