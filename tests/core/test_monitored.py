"""What a callback monitors, and where it writes, is known to be right before the first step."""

import os
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import Callback, Trainer
from solstice.callbacks import (
    Checkpoint,
    EarlyStopping,
    FlightRecorder,
    Profiler,
)
from solstice.loggers import CSV, JSONLines

BATCHES = [np.full(2, value, np.float32) for value in range(3)]


class Mean(solstice.Experiment):
    """The outputs of its steps are what a test says."""

    outputs: object

    def train_step(self, batch):
        return self, self.outputs(batch)

    def eval_step(self, batch):
        return self, self.outputs(batch)


class Host(solstice.Metrics):
    """Its `compute` needs numbers, and where there are many gives one metric more."""

    total: jnp.ndarray

    def merge(self, other):
        return Host(self.total + other.total)

    def compute(self):
        total = float(self.total)
        return {"total": total, **({"many": 1.0} if total > 2 else {})}


class OnDevice(Host):
    def merge(self, other):
        return OnDevice(self.total + other.total)

    def compute(self):
        return {"total": self.total / 2, "parts": {"half": self.total}, "rows": jnp.ones(3)}


OUTS = {
    "scalar": lambda batch: jnp.mean(batch),
    "mapping": lambda batch: {"loss": jnp.mean(batch), "aux": {"l2": 1.0}},
    "beside": lambda batch: (OnDevice(jnp.sum(batch)), {"loss": jnp.mean(batch)}),
    "ready-made": lambda batch: solstice.metrics.RegressionMetrics(batch, batch + 1),
    "nothing": lambda batch: None,
}


class Steps(Callback):
    """What a run has called, so that a test sees whether a step was taken."""

    phase = solstice.Phase.SAVE

    def __init__(self):
        self.taken = 0

    def on_step_start(self, record):
        self.taken += 1


def refused(callback, outputs, val_ds=BATCHES):
    """What is raised before the first step."""
    steps = Steps()
    with pytest.raises((KeyError, ValueError)) as caught:
        Trainer([callback, steps]).fit(Mean(outputs), BATCHES, val_ds)
    assert steps.taken == 0
    return str(caught.value)


@pytest.mark.parametrize("kind", OUTS)
@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize("make", ["stopping", "checkpoint", "own"])
def test_a_misspelt_monitor_is_refused_before_the_first_step(kind, mode, make, tmp_path):
    monitor = f"{mode}/los"
    callback = {
        "stopping": lambda: EarlyStopping(monitor),
        "checkpoint": lambda: Checkpoint(tmp_path / "a", monitor=monitor),
        "own": lambda: type("Own", (Callback,), {"monitor": monitor})(),
    }[make]()
    text = refused(callback, OUTS[kind])
    assert f"{type(callback).__name__} monitors '{monitor}'" in text
    assert {
        "scalar": f"did you mean '{mode}/loss'?",
        "mapping": f"{mode}/aux/l2, {mode}/loss; did you mean '{mode}/loss'?",
        "beside": f"{mode}/total",
        "ready-made": f"{mode}/mse, {mode}/rmse",
        "nothing": "there are: none",
    }[kind] in text
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("scalar", "loss"),
        ("mapping", "aux/l2"),
        ("beside", "parts/half"),
        ("beside", "1/loss"),
        ("ready-made", "r2"),
    ],
)
def test_what_there_is_may_be_monitored(kind, name, mode):
    stopping = EarlyStopping(f"{mode}/{name}")
    Trainer([stopping]).fit(Mean(OUTS[kind]), BATCHES, BATCHES)
    assert stopping.best is not None


@pytest.mark.parametrize(
    ("make", "modes", "words"),
    [
        (EarlyStopping, ("val",), "without 'train', and it starts with `fit`"),
        (EarlyStopping, ("train",), "without 'val', and it monitors 'val/loss'"),
        (EarlyStopping, ("test",), "without 'val'"),
        (Checkpoint, ["val", "test"], "without 'train', and it saves the training"),
    ],
)
def test_modes_without_what_a_callback_needs_are_refused(make, modes, words, tmp_path):
    callback = make("val/loss" if make is EarlyStopping else tmp_path / "a")
    callback.modes = modes
    experiment = Mean(lambda batch: {"loss": jnp.mean(batch)})
    with pytest.raises(ValueError, match=rf'{words}.*write `modes = \("train".*"\)`'):
        Trainer([callback]).fit(experiment, BATCHES, BATCHES)
    callback.modes = ("train", "val", "test")
    Trainer([callback]).fit(experiment, BATCHES, BATCHES)


def test_an_array_is_refused_before_the_first_step():
    assert "array of 1 axes" in refused(EarlyStopping("val/rows"), OUTS["beside"])


def test_a_checkpoint_by_validation_needs_a_validation_set(tmp_path):
    saver = Checkpoint(tmp_path / "a", monitor="val/loss")
    text = refused(saver, OUTS["scalar"], None)
    assert "Checkpoint monitors 'val/loss' and there is no validation" in text


def test_the_checkpoints_of_another_run_outlive_a_misspelt_monitor(tmp_path):
    Trainer([Checkpoint(tmp_path)]).fit(Mean(OUTS["scalar"]), BATCHES)
    for monitor in ("train/los", "val/loss"):
        saver = Checkpoint(tmp_path, monitor=monitor, overwrite=True)
        refused(saver, OUTS["scalar"], None)
    assert (tmp_path / "step-3" / "manifest.json").exists()


def host(batch):
    return Host(jnp.sum(batch))


def test_where_names_may_depend_on_numbers_a_near_miss_is_a_warning():
    steps = Steps()
    with pytest.warns(UserWarning, match="did you mean 'val/total'"), pytest.raises(KeyError):
        Trainer([EarlyStopping("val/totl"), steps]).fit(Mean(host), BATCHES, BATCHES)
    assert steps.taken > 0
    with pytest.warns(UserWarning, match="no metric 'val/many'.*may give other names"):
        Trainer([EarlyStopping("val/many")]).fit(Mean(host), BATCHES, BATCHES)


class Measures(Callback):
    def measure(self, record):
        return {"temperature": 0.5}


def test_what_callbacks_measure_is_not_known_before():
    stopping = EarlyStopping("train/temperature")
    Trainer([Measures(), stopping]).fit(Mean(OUTS["scalar"]), BATCHES)
    assert stopping.best == 0.5
    with pytest.raises(KeyError, match="train/loss, train/temperature"):
        Trainer([Measures(), EarlyStopping("train/temp")]).fit(Mean(OUTS["scalar"]), BATCHES)
    assert "no metric" in refused_beside_measures("val/temperature")


def refused_beside_measures(monitor):
    steps = Steps()
    with pytest.raises(KeyError) as caught:
        Trainer([Measures(), EarlyStopping(monitor), steps]).fit(
            Mean(OUTS["scalar"]), BATCHES, BATCHES
        )
    assert steps.taken == 0
    return str(caught.value)


def test_a_step_that_cannot_be_compiled_is_asked_when_it_has_run():
    def eager(batch):
        return {"loss": float(batch.mean())}

    with pytest.warns(UserWarning, match="cannot be compiled"):
        Trainer([EarlyStopping("val/loss")]).fit(Mean(eager), BATCHES, BATCHES)


def test_what_is_monitored_in_another_way_is_nobodys_business():
    for monitor in ("loss", "test/loss", 3, None, "val/"):
        callback = type("Own", (Callback,), {"monitor": monitor})()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Trainer([callback, Silent()]).fit(Mean(OUTS["scalar"]), BATCHES)


class Silent(Callback):
    """Measures nothing."""


WRITERS = {
    "Checkpoint": lambda path: Checkpoint(path),
    "FlightRecorder": lambda path: FlightRecorder(path / "flight"),
    "Profiler": lambda path: Profiler(path),
    "CSV": lambda path: CSV(path / "a.csv"),
    "JSONLines": lambda path: JSONLines(path / "a.jsonl"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("below", ["", "more/folders"])
def test_a_file_in_the_way_is_said_before_the_first_step(name, below, tmp_path):
    (tmp_path / "runs").write_text("a file")
    steps = Steps()
    with pytest.raises((OSError, solstice.checkpoint.CheckpointError), match=name) as caught:
        Trainer([WRITERS[name](tmp_path / "runs" / below), steps]).fit(
            Mean(OUTS["scalar"]), BATCHES
        )
    assert steps.taken == 0
    assert f"{tmp_path / 'runs'} is not a folder" in str(caught.value)


@pytest.mark.parametrize("kind", [CSV, JSONLines])
def test_a_folder_in_place_of_a_file_is_said_before_the_first_step(kind, tmp_path):
    steps = Steps()
    with pytest.raises(IsADirectoryError, match=kind.__name__):
        Trainer([kind(tmp_path), steps]).fit(Mean(OUTS["scalar"]), BATCHES)
    assert steps.taken == 0


def test_a_flight_recorder_replaces_nothing_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    steps = Steps()
    with pytest.raises(solstice.checkpoint.CheckpointError, match="give another path"):
        Trainer([FlightRecorder(tmp_path), steps]).fit(Mean(OUTS["scalar"]), BATCHES)
    assert steps.taken == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_must_not_be_written_to_is_said(name, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises((PermissionError, solstice.checkpoint.CheckpointError), match=name):
        Trainer([WRITERS[name](tmp_path / "new")]).fit(Mean(OUTS["scalar"]), BATCHES)


def test_nothing_is_written_by_a_check(tmp_path):
    callbacks = [make(tmp_path / name / "deep") for name, make in WRITERS.items()]
    with pytest.raises(KeyError):
        Trainer([*callbacks, EarlyStopping("train/los")]).fit(Mean(OUTS["scalar"]), BATCHES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [Checkpoint, FlightRecorder])
def test_missing_safetensors_are_said_before_the_first_step(make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)  # `import` then raises
    steps = Steps()
    trainer = Trainer([make(tmp_path / "a"), steps])
    with pytest.raises(ImportError, match="pip install safetensors"):
        trainer.fit(Mean(OUTS["scalar"]), BATCHES)
    assert steps.taken == 0
    trainer.test(Mean(OUTS["scalar"]), BATCHES)  # saves nothing


ONLY = {
    "CSV": lambda path, only: CSV(path / "a.csv", only=only),
    "Logging": lambda path, only: solstice.callbacks.Logging(print, only=only),
    "ProgressBar": lambda path, only: solstice.callbacks.ProgressBar(only=only),
}


@pytest.mark.parametrize("name", ONLY)
def test_what_only_asks_for_in_vain_is_named(name, tmp_path):
    with pytest.warns(UserWarning, match=rf"{name}\(only=.*'los'.*did you mean 'loss'"):
        Trainer([ONLY[name](tmp_path, ["l2", "los"])]).fit(
            Mean(lambda batch: {"loss": 1.0, "l2": 2.0}), BATCHES, BATCHES
        )


@pytest.mark.parametrize("name", ONLY)
def test_what_only_asks_for_and_there_is_is_not(name, tmp_path):
    class Other(Mean):
        def eval_step(self, batch):
            return self, {"accuracy": jnp.mean(batch)}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback = ONLY[name](tmp_path, ["loss", "accuracy"])
        Trainer([callback]).fit(Other(OUTS["mapping"]), BATCHES, BATCHES)
        callback = ONLY[name](tmp_path, ["loss", "temperature"])
        Trainer([callback, Measures()]).fit(Mean(OUTS["mapping"]), BATCHES)
