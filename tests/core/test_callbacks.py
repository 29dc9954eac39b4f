"""Callbacks: when they are called, what they are told, and how they end a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import Callback, Record, Stop

HOOKS = [
    "on_fit_start",
    "on_epoch_start",
    "on_step_start",
    "on_step_end",
    "on_epoch_end",
    "on_fit_end",
]


class Sum(solstice.Experiment):
    """A running sum of all that it has seen."""

    total: jax.Array

    def train_step(self, batch):
        new = solstice.replace(self, total=self.total + jnp.sum(batch))
        return new, {"mean": jnp.mean(batch)}

    def eval_step(self, batch):
        new = solstice.replace(self, total=self.total + jnp.sum(batch))
        return new, {"mean": jnp.mean(batch)}

    def predict_step(self, batch):
        return batch + self.total


def zero():
    return Sum(jnp.zeros(()))


def some(*values):
    """A batch of two examples for each value."""
    return [np.full(2, value, np.float32) for value in values]


class Heard(Callback):
    """Keeps what it hears: hook, mode, epoch, step, and step in the epoch."""

    def __init__(self):
        self.heard = []

    def _hear(self, hook, record):
        self.heard.append((hook, record.mode, record.epoch, record.step, record.epoch_step))

    def on_fit_start(self, record):
        self._hear("on_fit_start", record)

    def on_epoch_start(self, record):
        self._hear("on_epoch_start", record)

    def on_step_start(self, record):
        self._hear("on_step_start", record)

    def on_step_end(self, record):
        self._hear("on_step_end", record)

    def on_epoch_end(self, record):
        self._hear("on_epoch_end", record)

    def on_fit_end(self, record):
        self._hear("on_fit_end", record)

    def on_exception(self, record, error):
        self._hear("on_exception", record)


class At(Heard):
    """Does something in one hook of one mode, the first time."""

    def __init__(self, hook, mode, do):
        super().__init__()
        self.hook, self.mode, self.do = hook, mode, do
        self.done = False

    def _hear(self, hook, record):
        super()._hear(hook, record)
        if (hook, record.mode) == (self.hook, self.mode) and not self.done:
            self.done = True
            self.do()


def raises(error):
    def do():
        raise error

    return do


def run(mode, callbacks, batches):
    """A run of any mode with a Trainer; its result."""
    trainer = solstice.Trainer(callbacks)
    if mode == "train":
        return trainer.fit(zero(), batches, num_epochs=3)
    if mode == "predict":
        return list(trainer.predict(zero(), batches))
    return getattr(trainer, {"val": "validate", "test": "test"}[mode])(zero(), batches)


# Order


def test_the_order_of_hooks_in_fit():
    heard = Heard()
    solstice.Trainer([heard]).fit(zero(), some(1, 2), some(3), num_epochs=2)
    expected = [("on_fit_start", "train", 0, 0, 0)]
    for epoch in (0, 1):
        begin = 2 * epoch
        expected += [("on_epoch_start", "train", epoch, begin, 0)]
        for i in (0, 1):
            expected += [
                ("on_step_start", "train", epoch, begin + i, i),
                ("on_step_end", "train", epoch, begin + i + 1, i + 1),
            ]
        expected += [
            ("on_epoch_end", "train", epoch, begin + 2, 2),
            ("on_epoch_start", "val", epoch, begin + 2, 0),
            ("on_step_start", "val", epoch, begin + 2, 0),
            ("on_step_end", "val", epoch, begin + 2, 1),
            ("on_epoch_end", "val", epoch, begin + 2, 1),
        ]
    assert heard.heard[:-1] == expected
    assert heard.heard[-1][:2] == ("on_fit_end", "train")
    assert heard.heard[-1][2:4] == (1, 4)


@pytest.mark.parametrize("mode", ["val", "test", "predict"])
def test_the_order_of_hooks_in_a_run_that_does_not_train(mode):
    heard = Heard()
    run(mode, [heard], some(1, 2))
    assert heard.heard == [
        ("on_fit_start", mode, 0, 0, 0),
        ("on_epoch_start", mode, 0, 0, 0),
        ("on_step_start", mode, 0, 0, 0),
        ("on_step_end", mode, 0, 0, 1),
        ("on_step_start", mode, 0, 0, 1),
        ("on_step_end", mode, 0, 0, 2),
        ("on_epoch_end", mode, 0, 0, 2),
        ("on_fit_end", mode, 0, 0, 2),
    ]


def test_callbacks_are_called_by_their_phase_and_else_as_given():
    called = []

    class Named(Callback):
        def __init__(self, name, phase):
            self.name, self.phase = name, phase

        def on_step_end(self, record):
            called.append(self.name)

    phases = solstice.Phase
    given = [("saves", phases.SAVE), ("logs", phases.LOG)]
    given += [("stops", phases.MONITOR), ("shows", phases.LOG)]
    run("test", [Named(*each) for each in given], some(1))
    assert called == ["logs", "shows", "stops", "saves"]


def test_a_record_tells_how_far_the_run_is():
    class Last(Callback):
        def on_step_end(self, record):
            self.record = record

    last = Last()
    solstice.Trainer([last]).fit(zero(), [np.ones(n, np.float32) for n in (1, 2, 3)], num_epochs=2)
    assert last.record.num_examples == 6
    assert last.record.steps_per_epoch == 3
    assert last.record.num_epochs == 2
    assert not last.record.has_validation
    with pytest.raises(dataclasses.FrozenInstanceError):
        last.record.step = 0


# Cadence and windows


class Windows(Callback):
    """Keeps the step and the metrics at its cadence, of training alone."""

    needs = ("metrics",)

    def __init__(self, every):
        self.every = every
        self.seen = []

    def on_step_end(self, record):
        if record.mode == "train":
            self.seen.append((record.step, record.metrics["mean"]))


def numbered(steps, num_epochs):
    """Batches of 1, 2 or 3 examples, other values in each epoch, and all of them in a row."""
    epochs = [
        [np.full(1 + i % 3, 10 * e + i, np.float32) for i in range(steps)]
        for e in range(num_epochs)
    ]
    return (lambda epoch: epochs[epoch]), [batch for epoch in epochs for batch in epoch]


def windows_by_numpy(batches, every):
    return [
        (end, pytest.approx(np.concatenate(batches[end - every : end]).mean(), rel=1e-5))
        for end in range(every, len(batches) + 1, every)
    ]


cadences = given(
    steps=st.integers(1, 5),
    num_epochs=st.integers(1, 3),
    first=st.integers(1, 6),
    second=st.integers(1, 6),
)


@settings(max_examples=40, deadline=None)
@cadences
def test_each_cadence_has_its_own_windows_within_an_epoch(steps, num_epochs, first, second):
    train_ds, batches = numbered(steps * num_epochs, 1)
    one, other = Windows(first), Windows(second)
    solstice.Trainer([one, other]).fit(zero(), train_ds)
    assert one.seen == windows_by_numpy(batches, first)
    assert other.seen == windows_by_numpy(batches, second)


@settings(max_examples=40, deadline=None)
@cadences
def test_windows_and_cadences_go_on_across_epochs(steps, num_epochs, first, second):
    train_ds, batches = numbered(steps, num_epochs)
    one, other = Windows(first), Windows(second)
    solstice.Trainer([one, other]).fit(zero(), train_ds, num_epochs=num_epochs)
    assert one.seen == windows_by_numpy(batches, first)
    assert other.seen == windows_by_numpy(batches, second)


def test_windows_of_training_do_not_mix_with_validation():
    train_ds, batches = numbered(2, 3)
    windows = Windows(2)
    solstice.Trainer([windows]).fit(zero(), train_ds, some(1000), num_epochs=3)
    assert windows.seen == windows_by_numpy(batches, 2)


@settings(max_examples=15, deadline=None)
@cadences
def test_the_metrics_of_an_epoch_are_the_same_whoever_looks_within_it(
    steps, num_epochs, first, second
):
    class Epochs(Callback):
        def __init__(self):
            self.means = []

        def on_epoch_end(self, record):
            self.means.append(record.metrics["mean"])

    train_ds, batches = numbered(steps, num_epochs)
    epochs = Epochs()
    callbacks = [Windows(first), epochs, Windows(second)]
    solstice.Trainer(callbacks).fit(zero(), train_ds, num_epochs=num_epochs)
    cut = [batches[i : i + steps] for i in range(0, len(batches), steps)]
    assert epochs.means == pytest.approx([np.concatenate(e).mean() for e in cut], rel=1e-5)


@settings(max_examples=20, deadline=None)
@cadences
def test_both_step_hooks_count_global_steps(steps, num_epochs, first, second):
    one, other = Heard(), Heard()
    one.every, other.every = first, second
    train_ds = some(*range(steps))
    solstice.Trainer([one, other]).fit(zero(), train_ds, num_epochs=num_epochs)
    for heard in (one, other):
        due = list(range(heard.every, steps * num_epochs + 1, heard.every))
        assert [step for hook, _, _, step, _ in heard.heard if hook == "on_step_end"] == due
        assert [step + 1 for hook, _, _, step, _ in heard.heard if hook == "on_step_start"] == due


def test_the_cadence_of_an_evaluation_counts_its_own_steps():
    heard = Heard()
    heard.every = 2
    solstice.Trainer([heard]).fit(zero(), some(1), some(1, 2, 3, 4, 5), num_epochs=2)
    steps = [each[4] for each in heard.heard if each[:2] == ("on_step_end", "val")]
    assert steps == [2, 4, 2, 4]


def test_a_dataclass_may_be_a_callback():
    @dataclasses.dataclass
    class Mean(Callback):
        every: int = 2
        needs: tuple[str, ...] = ("metrics",)

        def on_step_end(self, record):
            self.mean = record.metrics["mean"]

    one, other = Mean(), Mean()  # equal, and yet two readers
    solstice.Trainer([one, other]).fit(zero(), some(1, 3))
    assert one.mean == other.mean == 2


# Needs


class Needing(Callback):
    def __init__(self, *needs):
        self.needs = needs
        self.starts, self.ends = [], []

    def on_step_start(self, record):
        self.starts.append(record)

    def on_step_end(self, record):
        self.ends.append(record)


NEEDS = ["outputs", "batch", "experiment", "metrics"]


def test_at_the_end_of_a_step_everything_asked_for_is_there():
    needing = Needing(*NEEDS)
    solstice.Trainer([needing]).fit(zero(), some(1, 2, 3))
    for value, record in zip((1, 2, 3), needing.ends, strict=True):
        assert record.batch.tolist() == [value, value]
        assert isinstance(record.outputs["mean"], np.generic)
        assert record.outputs["mean"] == value
        assert record.metrics == {"mean": value}
    assert [float(record.experiment.total) for record in needing.ends] == [2, 6, 12]


def test_at_the_start_of_a_step_batch_and_experiment_are_those_before_it():
    needing = Needing(*NEEDS)
    solstice.Trainer([needing]).fit(zero(), some(1, 2, 3))
    assert [record.batch.tolist() for record in needing.starts] == [[1, 1], [2, 2], [3, 3]]
    assert [float(record.experiment.total) for record in needing.starts] == [0, 2, 6]
    for name in ("outputs", "metrics"):
        with pytest.raises(AttributeError, match=name):
            getattr(needing.starts[0], name)


@pytest.mark.parametrize("asked", NEEDS)
def test_what_was_not_asked_for_is_not_there_and_the_error_says_what_to_write(asked):
    needing = Needing(asked)
    run("train", [needing], some(1))
    record = needing.ends[0]
    assert set(record.given) == {asked}
    getattr(record, asked)
    for other in set(NEEDS) - {asked}:
        with pytest.raises(AttributeError, match=rf'write `needs = \("{other}",\)`'):
            getattr(record, other)
    with pytest.raises(AttributeError, match="Only `on_compile` has it"):
        _ = record.compilation


def test_the_other_moments_have_what_they_have_unasked():
    class Unasked(Callback):
        totals = ()

        def on_fit_start(self, record):
            self.totals += (float(record.experiment.total),)

        on_epoch_start = on_fit_end = on_fit_start

        def on_epoch_end(self, record):
            self.totals += (float(record.experiment.total), record.metrics["mean"])

    unasked = Unasked()
    solstice.Trainer([unasked]).fit(zero(), some(1, 2))
    assert unasked.totals == (0, 0, 6, 1.5, 6)


def test_a_callback_that_spoils_its_metrics_spoils_no_others():
    class Spoils(Callback):
        def on_epoch_end(self, record):
            self.seen = dict(record.metrics)

    class Clears(Callback):
        needs = ("metrics",)

        def on_step_end(self, record):
            record.metrics.clear()

    last = Spoils()
    assert solstice.Trainer([Clears(), last]).test(zero(), some(1, 3)) == {"mean": 2}
    assert last.seen == {"mean": 2}


@pytest.mark.parametrize("mode", ["train", "val", "test", "predict"])
def test_every_experiment_that_a_callback_keeps_stays_valid_and_right(mode):
    keeper = Needing("experiment")
    run(mode, [keeper], some(1, 2, 3))
    totals = [float(record.experiment.total) for record in keeper.ends]
    expected = {"train": np.cumsum([2, 4, 6] * 3), "predict": [0, 0, 0]}.get(mode, [2, 6, 12])
    assert totals == list(expected)


def test_every_experiment_that_a_callback_keeps_can_be_trained_on():
    keeper = Needing("experiment")
    start = zero()
    solstice.Trainer([keeper]).fit(start, some(1, 2, 3))
    assert start.total == 0
    again = [solstice.Trainer().fit(r.experiment, some(10)).total for r in keeper.ends]
    assert [float(total) for total in again] == [22, 26, 32]


def test_the_experiment_of_a_run_that_does_not_train_is_set_up_from_its_first_moment():
    class SetUp(Sum):
        def setup(self, batch):
            return solstice.replace(self, total=jnp.asarray(float(len(batch))))

    class First(Callback):
        def on_fit_start(self, record):
            self.total = float(record.experiment.total)

    for mode in ("fit", "validate", "test"):
        first = First()
        getattr(solstice.Trainer([first]), mode)(SetUp(jnp.zeros(())), some(1))
        assert first.total == 2


# Stop

TRAIN, VAL = some(1, 2, 3), some(4, 5)


@pytest.mark.parametrize(
    ("mode", "hook", "trained", "evaluated"),
    [
        ("train", "on_fit_start", 0, 0),
        ("train", "on_epoch_start", 0, 0),
        ("train", "on_step_start", 1, 0),
        ("train", "on_step_end", 1, 0),
        ("train", "on_epoch_end", 3, 2),
        ("val", "on_epoch_start", 3, 0),
        ("val", "on_step_start", 3, 1),
        ("val", "on_step_end", 3, 1),
        ("val", "on_epoch_end", 3, 2),
        ("train", "on_fit_end", 9, 6),
    ],
)
def test_stop_ends_a_fit_in_order(mode, hook, trained, evaluated):
    stops, other = At(hook, mode, raises(Stop("enough"))), Heard()
    result = solstice.Trainer([stops, other]).fit(zero(), TRAIN, VAL, num_epochs=3)
    assert stops.done
    assert_ended_in_order(stops, other)
    ends = [each[1] for each in other.heard if each[0] == "on_step_end"]
    assert (ends.count("train"), ends.count("val")) == (trained, evaluated)
    assert result.total == sum(2 * (i % 3 + 1) for i in range(trained))


@pytest.mark.parametrize("mode", ["val", "test", "predict"])
@pytest.mark.parametrize(
    ("hook", "steps"), list(zip(HOOKS, [0, 0, 1, 1, 3, 3], strict=True)), ids=HOOKS
)
def test_stop_ends_a_run_that_does_not_train_in_order(mode, hook, steps):
    stops, other = At(hook, mode, raises(Stop("enough"))), Heard()
    result = run(mode, [stops, other], TRAIN)
    assert stops.done
    assert_ended_in_order(stops, other)
    assert [each[0] for each in other.heard].count("on_step_end") == steps
    if mode == "predict":
        assert [outputs.tolist() for outputs in result] == [[1, 1], [2, 2], [3, 3]][:steps]
    else:
        assert result == ({"mean": np.mean([1, 2, 3][:steps])} if steps else {})


def assert_ended_in_order(stops, other):
    """All heard the same, each epoch that began was closed, and the run ended once, at last."""
    assert other.heard == stops.heard
    hooks = [each[0] for each in other.heard]
    assert hooks.count("on_epoch_start") == hooks.count("on_epoch_end")
    assert hooks.count("on_fit_end") == 1
    assert hooks[-1] == "on_fit_end"
    assert "on_exception" not in hooks


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize("hook", ["on_epoch_start", "on_epoch_end"])
@pytest.mark.parametrize("monitor", ["train/mean", "val/mean"])
def test_early_stopping_bears_a_stop_by_another(mode, hook, monitor):
    stops = At(hook, mode, raises(Stop()))
    early = solstice.callbacks.EarlyStopping(monitor)
    solstice.Trainer([stops, early]).fit(zero(), TRAIN, VAL, num_epochs=3)
    assert stops.done


# Exceptions


class BoomError(Exception):
    """What nobody else raises."""


def broken_after(count, error):
    def train_ds():
        for value in range(1, count + 1):
            yield np.full(2, value, np.float32)
        raise error

    return train_ds


@pytest.mark.parametrize("error", [BoomError("gone"), KeyboardInterrupt()])
def test_an_exception_of_the_data_set_loses_nothing(error):
    one, other = Heard(), Heard()
    trainer = solstice.Trainer([one, other])
    with pytest.raises(type(error)) as caught:
        trainer.fit(zero(), broken_after(3, error), num_epochs=2)
    assert caught.value is error
    assert trainer.experiment.total == error.experiment.total == 12
    assert "after step 3" in error.__notes__[-1]
    for heard in (one, other):
        hooks = [each[0] for each in heard.heard]
        assert hooks.count("on_exception") == 1
        assert heard.heard[-1] == ("on_exception", "train", 0, 3, 3)
        assert "on_fit_end" not in hooks


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("mode", "hook", "total"),
    [
        ("train", "on_fit_start", 0),
        ("train", "on_epoch_start", 0),
        ("train", "on_step_start", 0),
        ("train", "on_step_end", 2),
        ("train", "on_epoch_end", 12),
        ("val", "on_epoch_start", 12),
        ("val", "on_step_end", 12),
        ("val", "on_epoch_end", 12),
        ("train", "on_fit_end", 24),
    ],
)
def test_an_exception_of_a_callback_loses_nothing(error, mode, hook, total):
    fails, other = At(hook, mode, raises(error())), Heard()
    trainer = solstice.Trainer([fails, other])
    with pytest.raises(error) as caught:
        trainer.fit(zero(), TRAIN, VAL, num_epochs=2)
    assert trainer.experiment.total == total
    assert [each[0] for each in fails.heard].count("on_exception") == 1
    assert other.heard[-1][:2] == ("on_exception", "train")
    if total:
        assert caught.value.experiment.total == total


@pytest.mark.parametrize("mode", ["val", "test", "predict"])
def test_an_exception_in_a_run_that_does_not_train_is_told_to_all(mode):
    fails, other = At("on_step_end", mode, raises(BoomError())), Heard()
    with pytest.raises(BoomError):
        run(mode, [fails, other], TRAIN)
    assert fails.heard[-1] == other.heard[-1] == ("on_exception", mode, 0, 0, 1)


def test_on_exception_is_told_of_the_newest_experiment():
    class Saves(Callback):
        def on_exception(self, record, error):
            self.total, self.error = float(record.experiment.total), error

    saves = Saves()
    error = BoomError()
    with pytest.raises(BoomError):
        solstice.Trainer([saves]).fit(zero(), broken_after(2, error))
    assert saves.total == 6
    assert saves.error is error


def test_an_error_in_on_exception_is_a_note_and_the_others_are_told():
    error = BoomError()
    fails, other = At("on_exception", "train", raises(OSError("disk"))), Heard()
    with pytest.raises(BoomError):
        solstice.Trainer([fails, other]).fit(zero(), broken_after(1, error))
    assert any("At.on_exception raised OSError('disk')" in note for note in error.__notes__)
    assert other.heard[-1][0] == "on_exception"


def test_whoever_reads_predictions_may_stop_reading():
    heard = Heard()
    predictions = solstice.Trainer([heard]).predict(zero(), TRAIN)
    assert next(predictions).tolist() == [1, 1]
    predictions.close()
    assert heard.heard[-1][0] == "on_fit_end"
    assert "on_exception" not in [each[0] for each in heard.heard]


def test_a_trainer_has_no_experiment_before_its_first_run():
    with pytest.raises(AttributeError, match="call `fit`"):
        solstice.Trainer().experiment  # noqa: B018


def test_a_trainer_may_run_again_after_a_stop_and_an_exception():
    stops = At("on_step_end", "train", raises(Stop()))
    trainer = solstice.Trainer([stops])
    assert trainer.fit(zero(), TRAIN).total == 2
    assert trainer.fit(zero(), TRAIN).total == 12
    with pytest.raises(BoomError):
        trainer.fit(zero(), broken_after(1, BoomError()))
    assert trainer.fit(zero(), TRAIN).total == trainer.experiment.total == 12


def test_predictions_that_end_within_fit_leave_its_experiment_the_newest():
    ends = Callback()
    trainer, seen = solstice.Trainer([ends]), []
    predictions = trainer.predict(zero(), TRAIN)
    next(predictions)

    def ends_them(record):
        predictions.close()
        trainer.validate(zero(), VAL)
        seen.append(float(trainer.experiment.total))

    ends.modes, ends.on_epoch_end = ("train",), ends_them
    assert trainer.fit(zero(), TRAIN).total == trainer.experiment.total == 12
    assert seen == [12]


def test_predictions_that_begin_within_fit_may_end_after_it():
    begins, held = Callback(), []
    trainer = solstice.Trainer([begins])

    def begins_them(record):
        held.append(trainer.predict(zero(), TRAIN))
        next(held[0])

    begins.modes, begins.on_epoch_end = ("train",), begins_them
    assert trainer.fit(zero(), TRAIN).total == trainer.experiment.total == 12
    assert len(list(held[0])) == len(TRAIN) - 1
    assert trainer.experiment.total == 12
    trainer.validate(zero(), VAL)
    assert trainer.experiment.total == 0


def test_the_error_of_a_hook_names_that_of_the_data_set_too():
    def broken():
        yield from TRAIN[:2]
        raise OSError("the disk is gone")

    fails = Callback()
    fails.on_step_end = lambda record: 1 / 0
    with pytest.raises(ZeroDivisionError) as caught:
        solstice.Trainer([fails], steps_per_call=1).fit(zero(), broken)
    assert not any("disk" in note for note in caught.value.__notes__)  # a batch is read ahead
    fails.every = 2
    with pytest.raises(ZeroDivisionError) as caught:
        solstice.Trainer([fails], steps_per_call=1).fit(zero(), broken)
    assert any("disk is gone" in note for note in caught.value.__notes__)


def test_a_fit_within_fit_needs_another_trainer():
    fits = Callback()
    trainer, inner = solstice.Trainer([fits]), solstice.Trainer()
    fits.modes = ("train",)
    fits.on_epoch_end = lambda record: trainer.fit(zero(), VAL)
    with pytest.raises(RuntimeError, match=r"is training already.*solstice\.Trainer\(\)\.fit"):
        trainer.fit(zero(), TRAIN)
    assert trainer.history.names() == ["train/mean"]
    fits.on_epoch_end = lambda record: inner.fit(zero(), VAL)
    assert trainer.fit(zero(), TRAIN).total == trainer.experiment.total == 12


# Callbacks that cannot be used


def test_a_class_is_told_to_be_made_an_instance():
    with pytest.raises(TypeError, match=r"Heard is a class; write `Heard\(\)`"):
        solstice.Trainer([Heard])


@pytest.mark.parametrize("callback", [print, "bar", None, object()])
def test_what_is_no_callback_is_refused(callback):
    with pytest.raises(TypeError, match=r"is not a solstice\.Callback; subclass it"):
        solstice.Trainer([Heard(), callback])


def test_a_string_of_needs_is_told_to_be_a_tuple():
    callback = Heard()
    callback.needs = "metrics"
    with pytest.raises(TypeError, match=r'Heard.needs is a string; write `needs = \("metrics",\)`'):
        solstice.Trainer([callback])


def test_unknown_needs_are_named_with_those_there_are():
    callback = Heard()
    callback.needs = ("metrics", "loss")
    with pytest.raises(ValueError, match=r"Heard.needs: \['loss'\] .*'outputs', 'batch'"):
        solstice.Trainer([callback])


@pytest.mark.parametrize("every", [0, -3])
def test_a_cadence_below_one_is_refused(every):
    callback = Heard()
    callback.every = every
    with pytest.raises(ValueError, match=f"Heard.every must be 1 or more steps; it is {every}"):
        solstice.Trainer([callback])


def test_a_record_without_anything_says_so():
    with pytest.raises(AttributeError, match="this record has no 'metrics'"):
        Record(mode="train").metrics  # noqa: B018


class Adds(solstice.Experiment):
    total: object

    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch.sum()), {"mean": batch.mean()}

    def eval_step(self, batch):
        return self, {"mean": batch.mean()}


@pytest.mark.parametrize("others", [[], [solstice.Callback()]])
def test_a_stop_at_the_end_of_a_call_ends_the_run_there(others):
    class StopAtOnce(solstice.Callback):
        every = None

        def on_call_end(self, record):
            raise solstice.Stop("enough")

    batches = [np.full(1, value, np.float32) for value in range(8)]
    trainer = solstice.Trainer([StopAtOnce(), *others], steps_per_call=4)
    exp = trainer.fit(Adds(np.zeros((), np.float32)), batches, num_epochs=3)
    assert float(exp.total) == 0 + 1 + 2 + 3
    assert trainer.history.rows[-1]["step"] == 4


def test_there_is_no_snapshot_within_an_evaluation():
    class Asks(solstice.Callback):
        needs = ("snapshot",)

        def on_step_end(self, record):
            if record.mode == "val":
                _ = record.snapshot

    batches = [np.zeros(1, np.float32)]
    with pytest.raises(AttributeError, match="no 'snapshot'"):
        solstice.Trainer([Asks()]).fit(Adds(np.zeros((), np.float32)), batches, batches)
