"""Loggers into files: each goes on in its own file, and cuts nothing off another."""

import csv
import warnings

import numpy as np
import pytest

import solstice
from solstice.callbacks import Checkpoint
from solstice.loggers import CSV, JSONLines, Logger

pytest.importorskip("safetensors")

DATA = [np.ones(2, np.float32)] * 3


class Counts(solstice.Experiment):
    n: np.ndarray

    def train_step(self, batch):
        n = self.n + 1
        return solstice.replace(self, n=n), {"loss": 1 / n, "third": n / 3}

    def eval_step(self, batch):
        return self, {"loss": self.n, "late": self.n / 7}


class Dies(solstice.Callback):
    phase = solstice.Phase.SAVE

    def __init__(self, step):
        self.step = step

    def on_step_end(self, record):
        if record.step == self.step:
            raise KeyError("as asked")


class Late(solstice.Callback):
    """A metric of arrays, and one that comes later."""

    every = None

    def measure(self, record):
        return {"pair": np.arange(2.0)} | ({"new": 0.1} if record.epoch else {})


def fit(folder, callbacks, num_epochs=3, after=(), **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saver = Checkpoint(folder / "ck", every=2)
        solstice.Trainer([Late(), *callbacks, saver, *after]).fit(
            Counts(np.float32(0)), DATA, DATA, num_epochs=num_epochs, resume="last", **options
        )
    return [str(warning.message) for warning in caught]


def broken(folder, callbacks, step):
    with pytest.raises(KeyError, match="as asked"):
        fit(folder, callbacks, after=[Dies(step)])


def make(kind, folder):
    ending = kind.__name__.lower()
    return [kind(folder / f"{n}.{ending}", every=n) for n in (1, 2)] + [
        kind(folder / f"e.{ending}")
    ]


def texts(folder, kind):
    """By name; columns and rows of a CSV, since when a column was added is no matter."""
    found = {path.name: path.read_text() for path in folder.glob(f"*.{kind.__name__.lower()}")}
    return (
        found
        if kind is JSONLines
        else {n: list(csv.DictReader(t.split())) for n, t in found.items()}
    )


@pytest.mark.parametrize("kind", [CSV, JSONLines])
@pytest.mark.parametrize("step", [3, 5, 8])
def test_in_another_order_each_goes_on_in_its_own_file(tmp_path, kind, step):
    fit(tmp_path / "whole", make(kind, tmp_path / "whole"))
    broken(tmp_path / "a", make(kind, tmp_path / "a"), step)
    assert fit(tmp_path / "a", make(kind, tmp_path / "a")[::-1], strict_resume=True) == []
    assert texts(tmp_path / "a", kind) == texts(tmp_path / "whole", kind)
    assert len(texts(tmp_path / "a", kind)) == 3


@pytest.mark.parametrize("kind", [CSV, JSONLines])
def test_a_run_that_is_moved_with_its_files_goes_on(tmp_path, kind):
    fit(tmp_path / "whole", make(kind, tmp_path / "whole"))
    broken(tmp_path / "a", make(kind, tmp_path / "a"), 8)
    (tmp_path / "a").rename(tmp_path / "b")
    assert fit(tmp_path / "b", make(kind, tmp_path / "b")[::-1], strict_resume=True) == []
    assert texts(tmp_path / "b", kind) == texts(tmp_path / "whole", kind)


@pytest.mark.parametrize("kind", [CSV, JSONLines])
def test_one_whose_file_has_another_name_goes_on(tmp_path, kind):
    fit(tmp_path / "whole", [kind(tmp_path / "whole/log", every=1)])
    broken(tmp_path / "a", [kind(tmp_path / "a/log", every=1)], 8)
    (tmp_path / "a/log").rename(tmp_path / "a/other")
    assert fit(tmp_path / "a", [kind(tmp_path / "a/other", every=1)], strict_resume=True) == []
    assert (tmp_path / "a/other").read_text() == (tmp_path / "whole/log").read_text()


@pytest.mark.parametrize("kind", [CSV, JSONLines])
@pytest.mark.parametrize("rows", [2, 30])
def test_the_file_of_something_else_is_refused_and_not_cut(tmp_path, kind, rows):
    broken(tmp_path / "a", [kind(tmp_path / "a/log", every=1)], 8)
    other = tmp_path / "a/other"
    lines = (tmp_path / "a/log").read_text().splitlines(keepends=True)
    changed = [line.replace("0.", "7.") for line in (lines * 4)[1:]]
    other.write_text("".join([lines[0], *changed][: rows + 1]))
    before = other.read_text()
    with pytest.raises(ValueError, match=r"other'\) is not the file of the resumed run") as raised:
        fit(tmp_path / "a", [kind(other, every=1)])
    assert f"to '{tmp_path}/a/log'" in str(raised.value)
    assert other.read_text() == before
    assert fit(tmp_path / "a", [kind(tmp_path / "a/log", every=1)], strict_resume=True) == []


@pytest.mark.parametrize("kind", [CSV, JSONLines])
def test_rows_that_are_gone_are_said_and_counted(tmp_path, kind):
    log = tmp_path / "a/log"
    broken(tmp_path / "a", [kind(log, every=1)], 5)
    log.unlink()
    with (
        pytest.raises(KeyError, match="as asked"),
        pytest.warns(UserWarning, match="has 0 of the 6"),
    ):
        solstice.Trainer(
            [Late(), kind(log, every=1), Checkpoint(tmp_path / "a/ck", every=2), Dies(8)]
        ).fit(Counts(np.float32(0)), DATA, DATA, num_epochs=3, resume="last")
    (said,) = fit(tmp_path / "a", [kind(log, every=1)]) or [None]
    assert said is None
    table = solstice.read_history(log) if kind is JSONLines else None
    rows = table.rows if table else list(csv.DictReader(log.read_text().split()))
    assert [int(r["step"]) for r in rows if r["span"] == "steps"] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("kind", [CSV, JSONLines])
def test_a_run_saved_before_its_first_row_leaves_the_file_of_an_earlier_one(tmp_path, kind):
    log = tmp_path / "log"
    log.write_text("what an earlier run wrote\n" * 9)
    broken(tmp_path / "a", [kind(log)], 3)  # saved at 2; the first row is of step 3
    log.unlink(missing_ok=True)
    log.write_text("what an earlier run wrote\n" * 9)
    assert fit(tmp_path / "a", [kind(log)], strict_resume=True) == []
    kept = {path.read_text() for path in tmp_path.glob("log-*")}
    assert "what an earlier run wrote\n" * 9 in kept


def test_one_that_is_new_at_a_resume_leaves_the_file_that_is_there(tmp_path):
    broken(tmp_path / "a", [], 5)
    log = tmp_path / "m.csv"
    log.write_text("what another run wrote\n")
    (said,) = fit(tmp_path / "a", [CSV(log)])
    assert "CSV is new" in said
    assert (tmp_path / "m-1.csv").read_text() == "what another run wrote\n"
    assert len(log.read_text().splitlines()) == 1 + 4


class Ids(Logger):
    """Of a service: a run has an id, which a resumed one goes on with."""

    made = 0

    def __init__(self):
        super().__init__()
        self.id = None

    def open(self, start):
        self.id = start.about.get("id")
        if self.id is None:
            type(self).made += 1
            self.id = self.made

    def write(self, row):
        pass

    def about(self):
        return {} if self.id is None else {"id": self.id}


def test_a_run_that_is_broken_twice_before_a_row_goes_on_with_its_id(tmp_path):
    Ids.made = 0
    for step in (5, 5, None):  # the second ends before its first row
        logger = Ids()
        if step:
            broken(tmp_path / "a", [logger], step)
        else:
            fit(tmp_path / "a", [logger])
    assert (Ids.made, logger.id) == (1, 1)


def test_a_second_run_is_not_saved_with_the_id_of_the_first(tmp_path):
    Ids.made, logger = 0, Ids()
    fit(tmp_path / "a", [logger])
    broken(tmp_path / "b", [logger], 3)
    again = Ids()
    fit(tmp_path / "b", [again])
    assert again.id != 1


def test_tensorboard_has_one_file_for_each_process_of_a_run(tmp_path):
    pytest.importorskip("tensorboardX")
    from solstice.loggers import TensorBoard

    def events():
        return list((tmp_path / "b").glob("events.*"))

    broken(tmp_path, [TensorBoard(tmp_path / "b", every=1)], 8)
    assert len(events()) == 1
    assert len(list((tmp_path / "ck").glob("step-*"))) == 2  # it was saved several times
    fit(tmp_path, [TensorBoard(tmp_path / "b", every=1)])
    assert len(events()) == 2


def test_tensorboard_refuses_the_events_of_another_run(tmp_path):
    pytest.importorskip("tensorboardX")
    from solstice.loggers import TensorBoard

    broken(
        tmp_path / "a", [TensorBoard(tmp_path / "a/b"), TensorBoard(tmp_path / "a/s", every=1)], 8
    )
    fit(tmp_path / "c", [TensorBoard(tmp_path / "c/b")])
    before = {path.name for path in (tmp_path / "c/b").iterdir()}
    with pytest.raises(ValueError, match="has the events of another run; the resumed one"):
        fit(tmp_path / "a", [TensorBoard(tmp_path / "a/s", every=1), TensorBoard(tmp_path / "c/b")])
    assert {path.name for path in (tmp_path / "c/b").iterdir()} == before
    (said,) = fit(
        tmp_path / "a", [TensorBoard(tmp_path / "a/s", every=1), TensorBoard(tmp_path / "a/moved")]
    )
    assert "has no events of the resumed run" in said


def test_services_keep_apart_by_project():
    pytest.importorskip("mlflow")
    from solstice.loggers import MLflow

    one, other = (MLflow("digits", name=name, tracking_uri="http://localhost:1") for name in "ab")
    assert one.state_key() == {"experiment": "digits"}
    assert one.state_hint()["name"] != other.state_hint()["name"]
