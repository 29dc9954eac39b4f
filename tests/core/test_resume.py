"""A run that is ended anywhere and resumed ends with the bits of one that never was."""

import dataclasses
import json
import os
import re
import shutil
import signal
import threading
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import solstice
from solstice import checkpoint
from solstice._plain import from_plain, to_plain
from solstice.callbacks import Checkpoint, EarlyStopping, History, _saving
from solstice.checkpoint import CheckpointError
from solstice.compat import EquinoxModel, ema
from solstice.data import batches
from solstice.testing import Sgd

pytest.importorskip("safetensors")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(43, 4)).astype(np.float32)
Y = RNG.integers(0, 2, 43)
STEPS = 9
"""In an epoch of batches of 5."""


class BoomError(Exception):
    pass


class Dies(solstice.Callback):
    """Raises after the callbacks that save, at a step or at the end of an epoch."""

    phase = solstice.Phase.SAVE

    def __init__(self, step, *, at_epoch_end=False):
        self.at, self.at_epoch_end = step, at_epoch_end

    def on_step_end(self, record):
        if record.mode == "train" and record.step == self.at and not self.at_epoch_end:
            raise BoomError

    def on_epoch_end(self, record):
        if record.mode == "train" and record.step == self.at and self.at_epoch_end:
            raise BoomError


NET = EquinoxModel(
    lambda key: eqx.nn.Sequential(
        [
            eqx.nn.Linear(4, 8, key=key),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Dropout(0.3),
            eqx.nn.Linear(8, "scalar", key=key),
        ]
    )
)
OPTIMIZER = ema(Sgd(0.3), 0.9)


def experiment(metrics=None):
    return solstice.BinaryClassificationExperiment(NET, OPTIMIZER, metrics=metrics)


def curves(logits, labels, mask):
    return solstice.metrics.BinaryCurves(logits, labels, mask=mask)


class Walk:
    """An iterator's state, as grain has it; each epoch begins anew."""

    def __iter__(self):
        return Walking()


class Walking:
    def __init__(self):
        self.index = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.index == STEPS:
            raise StopIteration
        self.index += 1
        rows = slice((self.index - 1) * 5, self.index * 5)
        return X[rows], Y[rows]

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index = state["index"]


def remembering():
    """A function whose epochs depend on those before, by a generator that it hides."""
    rng = np.random.default_rng(3)

    def epoch():
        order = rng.permutation(43)
        return ((X[order[i : i + 5]], Y[order[i : i + 5]]) for i in range(0, 43, 5))

    return epoch


def by_epoch(epoch):
    order = np.random.default_rng(epoch).permutation(43)
    for i in range(0, 43, 5):
        yield X[order[i : i + 5]], Y[order[i : i + 5]]


SOURCES = {
    "batches": (lambda: batches((X, Y), 5, shuffle=True), "at once"),
    "a list": (lambda: list(batches((X, Y), 5)), "at once"),
    "state": (Walk, "by the state of its iterator"),
    "by epoch": (lambda: by_epoch, "by reading"),
    "remembering": (remembering, "by reading"),
    "a generator": (lambda: (b for e in range(9) for b in by_epoch(e)), "by reading"),
}


TRAINER = ("prefetch", "steps_per_call", "val_every_n_steps")


def run(folder, *, source="batches", metrics=None, dies=None, resume=None, **options):
    """Trains for 4 epochs; gives all that a run leaves behind."""
    history, stopping = History(every=4), EarlyStopping("val/loss", patience=9)
    callbacks = [history, stopping, Checkpoint(folder, every=4)]
    trainer = solstice.Trainer(
        callbacks if dies is None else [*callbacks, dies],
        limit_train_batches=STEPS if source == "a generator" else None,
        **{name: options.pop(name) for name in TRAINER if name in options},
    )
    if source == "a generator":
        options = {"max_steps": 4 * STEPS, **options}
    else:
        options = {"num_epochs": 4, **options}
    train_ds = SOURCES[source][0]()
    val_ds = [(X[:20], Y[:20])]
    if resume is None:
        exp = trainer.fit(experiment(metrics), train_ds, val_ds, **options)
    else:
        exp = trainer.fit(
            experiment(metrics), train_ds, val_ds, resume=resume, strict_resume=True, **options
        )
    return exp, history.rows, stopping.state_dict()


def same(one, other):
    (exp, rows, state), (exp2, rows2, state2) = one, other
    assert checkpoint.diff(exp, exp2) == {}
    assert json.dumps(to_plain(rows, "")) == json.dumps(to_plain(rows2, ""))
    assert state == state2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that were never ended, by what they train on."""
    found = {}

    def of(**options):
        key = json.dumps({name: str(value) for name, value in options.items()})
        if key not in found:
            found[key] = run(tmp_path_factory.mktemp("whole") / "a", **options)
        return found[key]

    return of


@pytest.mark.parametrize(
    ("source", "step"),
    [
        *[("batches", step) for step in (3, 4, 14, 27, 31, 36)],
        *[(source, step) for source in SOURCES for step in (14, 27) if source != "batches"],
    ],
)
def test_ended_at_a_step(whole, tmp_path, caplog, source, step):
    """Steps 4 and 36 are saved; 27 is the last of an epoch, and 31 is within the last."""
    with pytest.raises(BoomError):
        run(tmp_path / "a", source=source, dies=Dies(step))
    caplog.clear()
    same(run(tmp_path / "a", source=source, resume="last"), whole(source=source))
    said = caplog.text
    assert ("starting a new run" if step == 3 else SOURCES[source][1]) in said


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("epoch", [1, 4])
def test_ended_after_an_epoch(whole, tmp_path, caplog, source, epoch):
    with pytest.raises(BoomError):
        run(tmp_path / "a", source=source, dies=Dies(epoch * STEPS, at_epoch_end=True))
    same(run(tmp_path / "a", source=source, resume="last"), whole(source=source))
    assert ("it has ended" in caplog.text) == (epoch == 4)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["batches", "state", "remembering"])
@pytest.mark.parametrize("options", [{"prefetch": 3}, {"steps_per_call": 1}, {"steps_per_call": 3}])
def test_however_batches_are_read_and_calls_are_cut(whole, tmp_path, source, options):
    with pytest.raises(BoomError):
        run(tmp_path / "a", source=source, dies=Dies(14), **options)
    resumed = run(tmp_path / "a", source=source, resume="last", **options)
    same(resumed, whole(source=source, **options))


@pytest.mark.slow
def test_metrics_that_grow_are_taken_up_too(whole, tmp_path):
    with pytest.raises(BoomError):
        run(tmp_path / "a", metrics=curves, dies=Dies(14))
    same(run(tmp_path / "a", metrics=curves, resume="last"), whole(metrics=curves))


@pytest.mark.slow
def test_ended_again_and_again(whole, tmp_path):
    for step in (5, 9, 10, 22, 30, 35):
        with pytest.raises(BoomError):
            run(tmp_path / "a", dies=Dies(step), resume="last")
    same(run(tmp_path / "a", resume="last"), whole())


def test_a_run_that_has_ended_ends_at_once(whole, tmp_path):
    run(tmp_path / "a")
    same(run(tmp_path / "a", resume="last"), whole())


@pytest.mark.parametrize("limit", [{"num_epochs": 2}, {"max_steps": 12}, {"max_steps": 18}])
def test_a_run_that_is_further_than_asked_ends_at_once(tmp_path, limit):
    with pytest.raises(BoomError):
        run(tmp_path / "a", dies=Dies(22))
    exp, _, _ = run(tmp_path / "a", resume="last", **limit)
    assert int(exp.step) == 20


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, 14])
def test_validation_within_an_epoch(whole, tmp_path, step):
    options = {"val_every_n_steps": 5}
    with pytest.raises(BoomError):
        run(tmp_path / "a", dies=Dies(step), **options)
    same(run(tmp_path / "a", resume="last", **options), whole(**options))


def test_more_epochs_go_on_from_fewer(whole, tmp_path):
    run(tmp_path / "a", num_epochs=2)
    same(run(tmp_path / "a", resume="last"), whole())


@pytest.mark.parametrize("step", [STEPS, STEPS + 4])
def test_a_run_that_was_asked_to_stop_stops(tmp_path, step):
    """The checkpoint is written after the callback asks, and before the run has ended."""

    class Stops(solstice.Callback):
        phase = solstice.Phase.MONITOR

        def __init__(self):
            self.epochs = []

        def on_step_end(self, record):
            if record.mode == "train" and record.step == step > STEPS:
                raise solstice.Stop("enough")

        def on_epoch_end(self, record):
            self.epochs.append((record.step, record.metrics["loss"]))
            if record.step == step == STEPS:
                raise solstice.Stop("enough")

    def go(dies=(), resume=None):
        stops = Stops()
        trainer = solstice.Trainer([stops, Checkpoint(tmp_path / "a", every=1), *dies])
        ds = batches((X, Y), 5)
        return trainer.fit(experiment(), ds, num_epochs=4, resume=resume), stops.epochs

    with pytest.raises(BoomError):
        go([Dies(step, at_epoch_end=step == STEPS)])
    exp, epochs = go(resume="last")
    assert int(exp.step) == step
    assert [at for at, _ in epochs] == ([] if step == STEPS else [step])  # what was left to close


# What is refused, and told


def test_other_batches_are_told_and_refused_if_asked(tmp_path):
    def go(seed, **options):
        ds = batches((X, Y), 5, shuffle=True, seed=seed)
        trainer = solstice.Trainer([Checkpoint(tmp_path / "a", every=4), *options.pop("dies", [])])
        return trainer.fit(experiment(), ds, num_epochs=2, **options)

    with pytest.raises(BoomError):
        go(0, dies=[Dies(6)])
    with pytest.raises(CheckpointError, match="train_ds gives other batches than in the saved run"):
        go(1, resume="last", strict_resume=True)
    with pytest.warns(UserWarning, match="cannot be resumed exactly: train_ds gives other"):
        assert int(go(1, resume="last").step) == 18


def test_callbacks_that_are_gone_or_new_are_told(tmp_path):
    with pytest.raises(BoomError):
        run(tmp_path / "a", dies=Dies(6))
    trainer = solstice.Trainer([Checkpoint(tmp_path / "a")])
    with pytest.warns(UserWarning, match="EarlyStopping is not among the callbacks now"):
        trainer.fit(experiment(), SOURCES["batches"][0](), num_epochs=4, resume="last")


def test_another_arrangement_is_told(tmp_path):
    with pytest.raises(BoomError):
        run(tmp_path / "a", dies=Dies(6), steps_per_call=4)
    with pytest.raises(CheckpointError, match="steps_per_call was 4, and is 1"):
        run(tmp_path / "a", resume="last", steps_per_call=1)


def test_the_arrangement_of_the_saved_run_is_kept(tmp_path):
    with pytest.raises(BoomError):
        run(tmp_path / "a", dies=Dies(6), steps_per_call=1)
    expected = run(tmp_path / "b", steps_per_call=1)
    same(run(tmp_path / "a", resume="last"), expected)


def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_lost(tmp_path):
    run(tmp_path / "a", num_epochs=1)
    other = solstice.BinaryClassificationExperiment(
        eqx.nn.Linear(4, 1, key=jax.random.key(0)), Sgd(0.1)
    )
    trainer = solstice.Trainer([Checkpoint(tmp_path / "a")])
    with pytest.raises(CheckpointError, match="is of another tree"):
        trainer.fit(other, batches((X, Y), 5), resume="last")
    assert checkpoint.manifest(tmp_path / "a" / "step-9")["note"]["run"]["step"] == STEPS


def named(name, module="experiments", adds=1.0):
    """An Experiment and its net, whose classes have such names."""

    class Net(eqx.Module):
        w: jax.Array
        size: int = eqx.field(static=True)

    class Exp(solstice.Experiment):
        net: Net
        config: object = eqx.field(static=True)

        def train_step(self, batch):
            w = self.net.w + adds * batch.mean()
            return solstice.replace(self, net=Net(w, self.net.size)), {"loss": w.mean()}

        def eval_step(self, batch):
            return self, {"loss": self.net.w.mean()}

    for kind, of in ((Net, "Net"), (Exp, "")):
        kind.__qualname__ = kind.__name__ = f"{name}{of}"
        kind.__module__ = module
    return lambda size=3: Exp(Net(jnp.zeros(3), size), dataclasses.make_dataclass(name, ["a"])(1))


DATA = [np.full(2, value, np.float32) for value in range(4)]


@pytest.mark.parametrize("other", [named("New"), named("Old", module="moved.to")])
def test_a_class_of_another_name_is_named_and_goes_on(tmp_path, other):
    def fit(make, num_epochs, **options):
        return solstice.Trainer([Checkpoint(tmp_path / "a")]).fit(
            make(), DATA, DATA, num_epochs=num_epochs, **options
        )

    expected = solstice.Trainer().fit(named("Old")(), DATA, num_epochs=3)
    fit(named("Old"), 1)
    with pytest.raises(CheckpointError, match=r"`\.net` was experiments\.OldNet .*another name"):
        fit(other, 2, resume="last", strict_resume=True)
    with pytest.warns(UserWarning, match=r"`\.` was experiments\.Old .*another name"):
        fit(other, 2, resume="last")
    with warnings.catch_warnings():  # what is saved now has the names of now
        warnings.simplefilter("error")
        found = fit(other, 3, resume="last", strict_resume=True)
    np.testing.assert_array_equal(found.net.w, expected.net.w)


def test_a_class_of_another_name_that_computes_something_else_is_named(tmp_path):
    saver = Checkpoint(tmp_path / "a")
    solstice.Trainer([saver]).fit(named("Old")(), DATA)
    with pytest.warns(UserWarning, match="train_step computes something else"):
        solstice.Trainer([saver]).fit(named("New", adds=2.0)(), DATA, num_epochs=2, resume="last")


def test_a_class_of_another_name_with_another_setting_is_refused(tmp_path):
    saver = Checkpoint(tmp_path / "a")
    solstice.Trainer([saver]).fit(named("Old")(), DATA)
    with pytest.raises(CheckpointError, match=r"`\.net\.size` was 3 .* and is 4"):
        solstice.Trainer([saver]).fit(named("New")(size=4), DATA, num_epochs=2, resume="last")


@pytest.mark.parametrize("damage", ["arrays.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_good(whole, tmp_path, damage):
    with pytest.raises(BoomError):
        run(tmp_path / "a", dies=Dies(14))
    path = tmp_path / "a" / "step-12" / damage
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="step-12"):
        run(tmp_path / "a", resume="last")
    same(run(tmp_path / "a", resume=tmp_path / "a" / "step-9"), whole())


def test_a_folder_of_checkpoints_is_answered_with_the_newest(tmp_path):
    for name in ("step-9", "step-10", ".step-11.new"):
        checkpoint.save(tmp_path / name, {"w": np.zeros(1)})
    newest = re.escape(repr(str(tmp_path / "step-10")))
    with pytest.raises(CheckpointError, match=rf"no manifest\.json\. It has.*{newest}$"):
        checkpoint.load(tmp_path, like={"w": np.zeros(1)})


def test_resuming_needs_something_to_resume(tmp_path):
    ds = batches((X, Y), 5)
    with pytest.raises(ValueError, match="asks a Checkpoint callback, and there is none"):
        solstice.Trainer().fit(experiment(), ds, resume="last")
    with pytest.raises(ValueError, match="does not know which checkpoint is best"):
        solstice.Trainer([Checkpoint(tmp_path)]).fit(experiment(), ds, resume="best")
    with pytest.raises(CheckpointError, match="is not a checkpoint: it has no manifest"):
        solstice.Trainer().fit(experiment(), ds, resume=tmp_path / "nothing")
    with pytest.raises(TypeError, match='resume must be "last", "best" or a path; it is True'):
        solstice.Trainer().fit(experiment(), ds, resume=True)
    exp = experiment().setup((X, Y))
    checkpoint.save(tmp_path / "weights", exp)
    with pytest.raises(CheckpointError, match="is not a checkpoint of a run"):
        solstice.Trainer().fit(experiment(), ds, resume=tmp_path / "weights")


def test_what_a_callback_remembers_must_be_plain(tmp_path):
    class Odd(solstice.Callback):
        def state_dict(self):
            return {"what": object()}

    trainer = solstice.Trainer([Odd(), Checkpoint(tmp_path / "a")])
    with pytest.raises(TypeError, match=r"Odd\.state_dict\(\) holds <object"):
        trainer.fit(experiment(), batches((X, Y), 5))


# Signals


@pytest.fixture(autouse=True)
def usual_handler():
    """Python's own, also where the tests run in the background, whose shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Signals(solstice.Callback):
    """Sends this process signals in the middle of a call."""

    every = 1

    def __init__(self, step, numbers):
        self.step, self.numbers = step, numbers

    def on_step_end(self, record):
        if record.mode == "train" and record.step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_saves_and_ends_the_run(whole, tmp_path, number, error):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(error) as raised:
        run(tmp_path / "a", dies=Signals(14, [number]))
    assert error is not SystemExit or raised.value.code == 143
    last = Checkpoint(tmp_path / "a").last
    assert last is not None
    assert 14 <= int(last.name.removeprefix("step-")) < 36
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    same(run(tmp_path / "a", resume="last"), whole())


def test_a_second_signal_ends_at_once(tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path / "a", dies=Signals(14, [signal.SIGTERM, signal.SIGTERM]))
    assert Checkpoint(tmp_path / "a").last == tmp_path / "a" / "step-12"


def test_a_signal_after_the_last_step_still_ends_the_process(tmp_path):
    class Late(solstice.Callback):
        def on_fit_end(self, record):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        run(tmp_path / "a", dies=Late())
    assert Checkpoint(tmp_path / "a").last == tmp_path / "a" / "step-36"


def test_without_a_callback_that_saves_sigterm_is_left_alone():
    seen = []

    class Looks(solstice.Callback):
        def on_fit_start(self, record):
            seen.append(signal.getsignal(signal.SIGTERM))

    solstice.Trainer([Looks()]).fit(experiment(), batches((X, Y), 5))
    assert seen == [signal.SIG_DFL]


# The callback


def names(folder):
    """All names but those of the descriptions of runs, which tests/core/test_runs.py looks at."""
    return sorted(path.name for path in folder.iterdir() if not path.match("run*.json"))


def train(folder, *, values=None, more=(), **options):
    """Trains for 4 epochs, with a validation that measures these values."""

    class Measured(solstice.Experiment):
        step: jax.Array

        def train_step(self, batch):
            return solstice.replace(self, step=self.step + 1), None

        def eval_step(self, batch):
            return self, {"value": jnp.asarray(values)[self.step // STEPS - 1]}

    callback = Checkpoint(folder, **options)
    exp = Measured(jnp.zeros((), jnp.int32))
    ds = list(batches((X, Y), 5))
    trainer = solstice.Trainer([callback, *more])
    trainer.fit(exp, ds, None if values is None else ds[:1], num_epochs=4)
    return callback


def test_the_newest_and_the_best_stay(tmp_path):
    nan = float("nan")
    saved = train(
        tmp_path / "a",
        values=[0.3, nan, 0.9, 0.5],
        monitor="val/value",
        mode="max",
        keep=1,
        keep_best=1,
    )
    assert names(tmp_path / "a") == ["step-27", "step-36"]
    assert saved.best == tmp_path / "a" / "step-27"
    assert saved.last == tmp_path / "a" / "step-36"
    less = train(
        tmp_path / "b", values=[0.3, nan, 0.9, 0.5], monitor="val/value", mode="min", keep=1
    )
    assert less.best == tmp_path / "b" / "step-9"
    by_name = train(tmp_path / "d", values=[0.3, nan, 0.9, 0.5], monitor="val/value", keep=1)
    assert by_name.best == tmp_path / "d" / "step-27"
    none = train(tmp_path / "c", values=[nan] * 4, monitor="val/value", keep=2)
    assert none.best is None
    assert names(tmp_path / "c") == ["step-27", "step-36"]


def test_the_best_is_known_in_another_process(tmp_path):
    options = {"monitor": "val/value", "mode": "min", "keep": 1}
    train(tmp_path / "a", values=[0.3, 0.1, 0.9, 0.5], **options)
    again = Checkpoint(tmp_path / "a", **options)
    assert again.best == tmp_path / "a" / "step-18"
    assert Checkpoint(tmp_path / "a", monitor="val/other").best is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every": 10, "keep": 9}, [9, 10, 18, 20, 27, 30, 36]),
        ({"every": 10, "keep": 9, "every_epochs": None}, [10, 20, 30]),
        ({"every_epochs": 2, "keep": 9}, [18, 36]),
        ({"keep": 1}, [36]),
        ({"minutes": 1e-9, "every_epochs": None, "keep": 1}, [36]),
    ],
)
def test_when_it_saves(tmp_path, options, expected):
    train(tmp_path / "a", **options)
    assert sorted(int(n.removeprefix("step-")) for n in names(tmp_path / "a")) == expected


def test_a_folder_of_another_run_is_refused_or_emptied(tmp_path):
    train(tmp_path / "a", keep=9)
    with pytest.raises(CheckpointError, match="has the checkpoints of another run, up to step-36"):
        train(tmp_path / "a")
    assert len(names(tmp_path / "a")) == 4
    train(tmp_path / "a", overwrite=True, every_epochs=4)
    assert names(tmp_path / "a") == ["step-36"]


def test_what_a_dead_process_left_is_swept_away(tmp_path):
    (tmp_path / "a" / ".step-3.new").mkdir(parents=True)
    train(tmp_path / "a", keep=1)
    assert names(tmp_path / "a") == ["step-36"]


def test_what_cannot_be_written_is_raised_and_the_experiment_is_there(tmp_path):
    class InTheWay(solstice.Callback):
        def on_epoch_start(self, record):
            shutil.rmtree(tmp_path / "a")
            (tmp_path / "a").write_text("not a folder")

    trainer = solstice.Trainer([Checkpoint(tmp_path / "a", every=2), InTheWay()])
    with pytest.raises(CheckpointError, match="could not be written"):
        trainer.fit(experiment(), batches((X, Y), 5))
    assert int(trainer.experiment.step) == 4  # it is raised at the next save
    (tmp_path / "a").unlink()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "step-2").write_text("not a folder")  # which cannot be known
    trainer = solstice.Trainer([Checkpoint(tmp_path / "a", every=2)])
    with pytest.raises(CheckpointError, match="is there and is not a checkpoint"):
        trainer.fit(experiment(), batches((X, Y), 5))
    assert int(trainer.experiment.step) == 4


@pytest.mark.parametrize("is_large", [False, True])
def test_saving_is_done_in_a_thread_one_at_a_time(tmp_path, monkeypatch, is_large):
    begun, finished, under_way = [], [], []
    real = checkpoint.begin

    def begin(*args, **options):
        under_way.append(1)
        begun.append((threading.current_thread().name, len(under_way)))
        finish = real(*args, **options)

        def and_finish():
            finished.append(threading.current_thread().name)
            finish()
            under_way.pop()

        return and_finish

    monkeypatch.setattr(checkpoint, "begin", begin)
    monkeypatch.setattr(_saving, "_HELD_BYTES", -1 if is_large else 2**26)
    train(tmp_path / "a", every=1)
    # The arrays of a large state are written before the next step donates them.
    assert {name.startswith("solstice-checkpoint") for name, _ in begun} == {not is_large}
    assert {name.startswith("solstice-checkpoint") for name in finished} == {True}
    assert {count for _, count in begun} == {1}
    assert len(begun) == len(finished) == 40
    assert not [t for t in threading.enumerate() if t.name.startswith("solstice-checkpoint")]


def test_saving_changes_no_bit(tmp_path):
    plain = solstice.Trainer().fit(experiment(), batches((X, Y), 5), num_epochs=2)
    saved = solstice.Trainer([Checkpoint(tmp_path / "a", every=3, minutes=1e-9)]).fit(
        experiment(), batches((X, Y), 5), num_epochs=2
    )
    assert checkpoint.diff(plain, saved) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be 1 or more"),
        ({"keep": 0}, "keep must be 1 or more"),
        ({"keep_best": -1}, "keep_best must be 0 or more"),
        ({"minutes": 0}, "minutes must be more than 0"),
        ({"mode": "up"}, 'mode must be "min" or "max"'),
        ({"monitor": "loss"}, "monitor must be named as in"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Checkpoint("runs/a", **options)


def test_a_monitor_that_is_no_metric_is_told(tmp_path):
    with pytest.raises(KeyError, match="there are: val/value"):
        train(tmp_path / "a", values=[1.0] * 4, monitor="val/loss")


# What is kept as JSON

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
)


@given(plain)
def test_what_is_plain_goes_through_json_and_back(value):
    back = from_plain(json.loads(json.dumps(to_plain(value, "x"), allow_nan=False)))
    assert repr(back) == repr(value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "complex64"])
def test_arrays_go_through_json_and_back(dtype):
    array = np.asarray(jnp.asarray([[1, 0], [3, 7]]).astype(dtype))
    back = from_plain(json.loads(json.dumps(to_plain([array, array[0, 1], array[:0]], "x"))))
    assert back[0].dtype == array.dtype
    assert type(back[1]) is type(array[0, 1])
    assert back[2].shape == (0, 2)
    np.testing.assert_array_equal(back[0], array)


@pytest.mark.parametrize("value", [{1, 2}, np.array(["a"]), jax.random.key(0), lambda: 1])
def test_what_is_not_plain_is_told(value):
    with pytest.raises(TypeError, match="x holds"):
        to_plain(value, "x")


@pytest.mark.parametrize("first", [5, 13])
@pytest.mark.parametrize("source", sorted(SOURCES))
def test_more_steps_go_on_from_fewer(whole, tmp_path, source, first):
    """The epoch that `max_steps` ended goes on, though it was validated and saved as ended."""
    run(tmp_path / "a", source=source, max_steps=first)
    assert int(run(tmp_path / "a", source=source, resume="last", max_steps=first)[0].step) == first
    run(tmp_path / "a", source=source, resume="last", max_steps=first + 1)
    exp, rows, _ = run(tmp_path / "a", source=source, resume="last")
    expected, expected_rows, _ = whole(source=source)
    assert checkpoint.diff(exp, expected) == {}
    asked = {first, first + 1}
    assert [row for row in rows if row["step"] not in asked] == [
        row for row in expected_rows if row["step"] not in asked
    ]


@pytest.mark.parametrize("known", [True, False])
def test_an_epoch_that_ended_with_the_steps_is_not_ended_twice(tmp_path, known):
    ready = list(batches((X, Y), 5))
    train_ds = ready if known else lambda: iter(ready)
    told = []

    class Tells(solstice.Callback):
        def on_epoch_end(self, record):
            told.append((record.epoch, record.step))

    def go(**options):
        trainer = solstice.Trainer([Tells(), Checkpoint(tmp_path / "a")])
        return trainer.fit(experiment(), train_ds, strict_resume=True, **options)

    go(max_steps=STEPS)
    assert int(go(max_steps=STEPS + 2, resume="last").step) == STEPS + 2
    assert int(go(max_steps=2 * STEPS, resume="last").step) == 2 * STEPS
    assert told == [(0, STEPS), (1, STEPS + 2), (1, 2 * STEPS)]


def test_other_data_after_an_epoch_are_told(tmp_path):
    def go(data, **options):
        trainer = solstice.Trainer([Checkpoint(tmp_path / "a")])
        trainer.fit(experiment(), data, strict_resume=True, **options)

    go(batches((X, Y), 5, shuffle=True))
    for other in (batches((X + 1, Y), 5, shuffle=True), batches((X, Y), 5, shuffle=True, seed=1)):
        with pytest.raises(CheckpointError, match="gives other batches"):
            go(other, num_epochs=2, resume="last")
    go(list(batches((X[:40], Y[:40]), 5)), num_epochs=1, resume="last")  # which has ended
    longer = [*batches((X, Y), 5, shuffle=True), (X[:5], Y[:5])]
    with pytest.raises(CheckpointError, match="an epoch had 9 batches, and has 10"):
        go(longer, num_epochs=2, resume="last")


def test_a_length_that_was_never_right_is_no_change(tmp_path):
    class Stream:  # such as a DataLoader of an IterableDataset
        def __iter__(self):
            return iter(list(batches((X, Y), 5)))

        def __len__(self):
            return 100

    for epochs in (1, 2):
        trainer = solstice.Trainer([Checkpoint(tmp_path / "a")])
        exp = trainer.fit(
            experiment(), Stream(), num_epochs=epochs, resume="last", strict_resume=True
        )
    assert int(exp.step) == 2 * STEPS


def test_a_snapshot_without_callbacks_resumes_the_run_alone(tmp_path):
    """Other callbacks, and no validation set: nothing is missed, and the bits are the same."""

    class Half(solstice.Callback):
        needs, every, modes = ("snapshot",), 3, ("train",)

        def state_dict(self):
            return {"mine": 1}

        def on_step_end(self, record):
            alone = record.snapshot.without_callbacks()
            assert record.snapshot.note["run"]["callbacks"] != alone.note["run"]["callbacks"]
            solstice.checkpoint.save(tmp_path / "half", alone.experiment, note=alone.note)

    class Sum(solstice.Experiment):
        total: jax.Array

        def train_step(self, batch):
            return solstice.replace(self, total=self.total * 1.1 + batch.sum()), {}

        def eval_step(self, batch):
            return self, {}

    data = [np.full(3, value, np.float32) for value in range(5)]
    whole = solstice.Trainer([Half()]).fit(Sum(jnp.zeros(())), data, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = solstice.Trainer().fit(Sum(jnp.zeros(())), data, resume=tmp_path / "half")
    assert float(resumed.total) == float(whole.total)
