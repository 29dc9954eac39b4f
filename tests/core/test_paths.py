"""Paths are of this machine: a URL is refused by name, `~` is the home folder."""

import os
from pathlib import Path

import numpy as np
import pytest

import solstice
from solstice import callbacks, checkpoint, loggers
from solstice._paths import local_path
from solstice.callbacks import Checkpoint, FlightRecorder, Profiler
from solstice.loggers import CSV, JSONLines

pytest.importorskip("safetensors")

URLS = [
    ("gs://bucket/run", "run"),
    (Path("gs://bucket/run"), "run"),
    ("S3://bucket/m.csv", "m.csv"),
    ("hf:/user/model/", "model"),
    ("abfss+x://container@account/run", "run"),
    ("runs/gs://bucket/run", "run"),
    ("file:///tmp/run", "/tmp/run"),
    (Path("file:///tmp/run"), "/tmp/run"),
    ("file://localhost/tmp/run", "/tmp/run"),
    ("s3://", "runs/a"),
]


class Counter(solstice.Experiment):
    total: np.ndarray

    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch.sum()), {"loss": batch.mean()}

    def eval_step(self, batch):
        return self, {"loss": batch.mean()}


def fit(*given, num_epochs=2, **options):
    data = [np.float32([1, 2]), np.float32([3, 4])]
    trainer = solstice.Trainer(given)
    trainer.fit(Counter(np.float32(0)), data, num_epochs=num_epochs, **options)
    return trainer


@pytest.mark.parametrize(("url", "local"), URLS)
def test_a_url_is_refused_by_name_and_the_advice_is_a_local_path(url, local):
    with pytest.raises(ValueError, match=r"directory is .*local files only") as raised:
        local_path(url, "directory")
    assert str(url) in str(raised.value)
    assert f"such as {local!r}" in str(raised.value)
    local_path(local, "directory")


@pytest.mark.parametrize("path", ["a:b", "C:/x", r"C:\x", "2026-01-01T12:00:00/a", "run:1/a", "~a"])
def test_a_colon_is_not_a_url(path):
    assert local_path(path, "path") == Path(path)


class InACloud:
    """A path of a library for stores, which would copy what is there: `cloudpathlib`'s."""

    def __str__(self):
        return "az://bucket/run"

    def __fspath__(self):
        raise AssertionError("copied")


TAKE_PATHS = {
    "Checkpoint": Checkpoint,
    "FlightRecorder": FlightRecorder,
    "Profiler": Profiler,
    "CSV": CSV,
    "JSONLines": JSONLines,
    "checkpoint.save": lambda path: checkpoint.save(path, {"a": np.zeros(1)}),
    "checkpoint.load": lambda path: checkpoint.load(path, like={"a": np.zeros(1)}),
    "checkpoint.manifest": checkpoint.manifest,
    "checkpoint.sweep": checkpoint.sweep,
    "checkpoint.diff": lambda path: checkpoint.diff({"a": np.zeros(1)}, path),
    "to_csv": lambda path: solstice.History().to_csv(path),
    "to_jsonl": lambda path: solstice.History().to_jsonl(path),
    "read_history": solstice.read_history,
    "compare": lambda path: solstice.compare([path]),
    "resume": lambda path: fit(resume=path),
    "replay": lambda path: solstice.replay(path, Counter(np.float32(0)), []),
}


TAKE_LOCAL_PATHS = ["Profiler", "CSV", "JSONLines", "to_csv", "to_jsonl", "read_history", "compare"]
"""The others are of checkpoints, which may be at gs:// and s3://: see test_checkpoint_bucket.py."""


@pytest.mark.parametrize("path", ["gs://bucket/a", Path("s3://bucket/a")], ids=["text", "Path"])
@pytest.mark.parametrize("name", TAKE_LOCAL_PATHS)
def test_what_takes_a_local_path_refuses_a_bucket(tmp_path, monkeypatch, name, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="local files only"):
        TAKE_PATHS[name](path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path", ["az://bucket/a", Path("az://bucket/a"), InACloud()], ids=["text", "Path", "cloud"]
)
@pytest.mark.parametrize("take", TAKE_PATHS.values(), ids=TAKE_PATHS)
def test_whatever_takes_a_path_refuses_a_url(tmp_path, monkeypatch, take, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="local files only"):
        take(path)
    assert list(tmp_path.iterdir()) == []


def test_the_tensorboard_logger_refuses_a_url():
    pytest.importorskip("tensorboardX")
    with pytest.raises(ValueError, match="directory is 'gs://a/b'"):
        loggers.TensorBoard("gs://a/b")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    saver = Checkpoint("~/runs/a", every_epochs=2)
    trainer = fit(saver, CSV("~/runs/m.csv"))
    trainer.history.to_csv("~/runs/h.csv")
    found = sorted(path.name for path in (tmp_path / "home/runs").iterdir())
    assert found == ["a", "h.csv", "m.csv", "run.json"]
    again = [saver, CSV("~/runs/m.csv")]
    assert len(fit(*again, resume="~/runs/a/step-4", num_epochs=3).history.rows) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


class ChangesTo(solstice.Callback):
    """Goes into a folder within the first epoch."""

    def __init__(self, folder):
        self.folder = folder

    def on_step_end(self, record):
        if record.step == 1 and self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            os.chdir(self.folder)


class Fails(solstice.Callback):
    phase = solstice.Phase.SAVE

    def on_step_end(self, record):
        if record.step == 3:
            raise RuntimeError("as asked")


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_all_files_of_a_run_are_in_the_folder_in_which_it_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back, whoever changes it
    saver = Checkpoint("runs/a")
    flight = FlightRecorder("flight")
    with pytest.raises(RuntimeError, match="as asked") as raised:
        fit(ChangesTo(tmp_path / "b"), CSV("m.csv"), JSONLines("m.jsonl"), saver, flight, Fails())
    assert files(tmp_path / "b") == set()
    assert {path.split("/")[0] for path in files(tmp_path)} == {
        "runs",
        "m.csv",
        "m.jsonl",
        "flight",
    }
    assert saver.last == tmp_path / "runs/a/step-2"
    assert f"solstice.replay('{tmp_path}/flight'" in "".join(raised.value.__notes__)


def test_the_folder_is_that_in_which_a_run_begins_and_not_where_a_callback_was_made(
    tmp_path, monkeypatch
):
    saver, log = Checkpoint("a", every_epochs=2), CSV("m.csv")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        fit(saver, log, resume="last")
        assert saver.last == tmp_path / name / "a/step-4"
    assert {"one/m.csv", "two/m.csv"} <= files(tmp_path)
    assert len((tmp_path / "one/m.csv").read_text().splitlines()) == 3
    monkeypatch.chdir(tmp_path / "one")
    fit(saver, log, resume="last", num_epochs=4)  # that of this folder, not of the newest run
    assert saver.last == tmp_path / "one/a/step-8"
    assert len((tmp_path / "one/m.csv").read_text().splitlines()) == 5


def test_rows_of_a_test_join_those_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = fit(ChangesTo(tmp_path / "b"), CSV("m.csv"))
    trainer.test(trainer.experiment, [np.float32([1])])
    assert ",test,epoch," in (tmp_path / "m.csv").read_text()
    assert files(tmp_path / "b") == set()


def test_a_profile_is_in_the_folder_in_which_the_run_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profiler = callbacks.Profiler("profile", start=0, steps=1)
    fit(ChangesTo(tmp_path / "b"), profiler, num_epochs=3)
    assert files(tmp_path / "b") == set()
    assert any("perfetto" in name for name in files(tmp_path / "profile"))
