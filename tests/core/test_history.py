"""History: a row for each epoch, evaluation and span of steps."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice.callbacks import History


class Mean(solstice.Experiment):
    def train_step(self, batch):
        return self, {"loss": jnp.mean(batch)}

    def eval_step(self, batch):
        return self, {"loss": -jnp.mean(batch)}


def some(values):
    return [np.full(1, value, np.float32) for value in values]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 2), st.integers(1, 5))
def test_rows_say_what_numpy_says(values, num_epochs, every):
    history = History(every=every)
    solstice.Trainer([history]).fit(Mean(), some(values), some([7]), num_epochs=num_epochs)
    seen = np.float32(values * num_epochs)
    for row in history.rows:
        moment = (row["mode"], row["span"])
        first = {
            ("train", "epoch"): row["step"] - len(values),
            ("train", "steps"): row["step"] - every,
        }
        expected = -7 if row["mode"] == "val" else seen[first[moment] : row["step"]].mean()
        np.testing.assert_allclose(row["loss"], expected, rtol=1e-6)
    spans = [row["span"] for row in history.rows if row["mode"] == "train"]
    assert spans.count("epoch") == num_epochs
    assert spans.count("steps") == len(seen) // every


def test_a_new_run_begins_anew_and_a_test_is_added():
    history = History()
    trainer = solstice.Trainer([history])
    trainer.fit(Mean(), some([1]))
    trainer.fit(Mean(), some([2]))
    trainer.test(Mean(), some([3]))
    assert history.rows == [
        {"step": 1, "epoch": 0, "mode": "train", "span": "epoch", "loss": 2.0},
        {"step": 0, "epoch": 0, "mode": "test", "span": "epoch", "loss": -3.0},
    ]
    assert trainer.history is history


def test_what_was_not_seen_has_no_row():
    class StopAtOnce(solstice.Callback):
        def on_fit_start(self, record):
            raise solstice.Stop("at once")

    history = History()
    solstice.Trainer([history, StopAtOnce()]).fit(Mean(), some([1]))
    assert history.rows == []


def test_every_trainer_keeps_one():
    trainer = solstice.Trainer()
    trainer.fit(Mean(), some([1, 3]), some([5]), num_epochs=3)
    assert trainer.history.names() == ["train/loss", "val/loss"]
    assert trainer.history.series("train/loss") == ([2, 4, 6], [2.0, 2.0, 2.0])
    assert trainer.history.series("val/loss")[1] == [-5.0] * 3
    assert repr(trainer.history).splitlines() == [
        "epoch  step  train/loss  val/loss",
        "    1     2           2        -5",
        "    2     4           2        -5",
        "    3     6           2        -5",
    ]
    assert "<td>-5</td>" in trainer.history._repr_html_()


def test_the_one_of_its_own_keeps_no_large_arrays_and_names_them():
    class BlockOutputs(solstice.Metrics):
        total: object

        def merge(self, other):
            return BlockOutputs(self.total + other.total)

        def compute(self):
            return {"total": self.total, "first": self.total[0], "few": self.total[:256]}

    class Vectors(Mean):
        def train_step(self, batch):
            return self, BlockOutputs(batch)

    data = [np.ones(257, np.float32)] * 2
    own, asked, alone = solstice.Trainer(), History(), History(scalars_only=True)
    for _ in range(2):
        with pytest.warns(
            UserWarning, match="leaves out|give no metrics|cannot be compiled"
        ) as said:
            own.fit(Vectors(), data, num_epochs=3)
        assert [str(warning.message) for warning in said] == [
            "trainer.history leaves out arrays of more than 256 numbers: `total`, float32[257]. To "
            "keep them, write `solstice.History()` among the callbacks of the Trainer"
        ]
    solstice.Trainer([asked, alone]).fit(Vectors(), data)
    moment = {"step", "epoch", "mode", "span"}
    assert {*own.history.rows[0]} - moment == {"first", "few"}
    assert {*asked.rows[0]} - moment == {"first", "few", "total"}
    assert {*alone.rows[0]} - moment == {"first"}


class Clashing(Mean):
    def train_step(self, batch):
        names = ["step", "epoch", "mode", "span", "metric/step"]
        return self, {name: jnp.mean(batch) + i for i, name in enumerate(names)}

    def eval_step(self, batch):
        return self, {"epoch": 7.0}


def test_metrics_with_the_names_of_the_moment_are_kept(tmp_path):
    logger = solstice.loggers.CSV(tmp_path / "log.csv", only=["step", "epoch", "metric/step"])
    lines = solstice.loggers.JSONLines(tmp_path / "log.jsonl")
    trainer = solstice.Trainer([logger, lines])
    trainer.fit(Clashing(), some([1, 3]), some([5]))
    history = trainer.history
    history.to_csv(tmp_path / "to.csv")
    history.to_jsonl(tmp_path / "to.jsonl")
    expected = {"step": 2.0, "epoch": 3.0, "mode": 4.0, "span": 5.0, "metric/step": 6.0}
    for name in ("to.csv", "to.jsonl", "log.csv", "log.jsonl", None):
        found = solstice.read_history(tmp_path / name) if name else history
        logged = {"mode", "span"} if name == "log.csv" else set()
        values = {n: v for n, v in expected.items() if n not in logged}
        assert {n: found.series(f"train/{n}")[1] for n in values} == {
            n: [v] for n, v in values.items()
        }
        assert {*found.names()} == {*(f"train/{n}" for n in values), "val/epoch"}
        assert found.best("val/epoch")["metric/epoch"] == 7.0
        assert [(row["step"], row["epoch"], row["mode"]) for row in found.rows] == [
            (2, 0, "train"),
            (2, 0, "val"),
        ]
    assert "train/step" in repr(history)
    assert history.plot(only=["step"]).axes[0].get_title() == "step"


def test_arrays_and_truths_come_back_from_files(tmp_path):
    history = history_of(loss=[1.0], matrix=[np.eye(2, dtype=np.int32)], good=[True])
    history.to_csv(tmp_path / "a.csv")
    (row,) = solstice.read_history(tmp_path / "a.csv").rows
    assert (row["matrix"], row["good"]) == ([[1, 0], [0, 1]], True)


def test_a_long_table_is_shown_in_part(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    trainer = solstice.Trainer()
    trainer.fit(Mean(), some([1]), some([2]), num_epochs=30)
    lines = repr(trainer.history).splitlines()
    assert len(lines) == 12
    assert lines[5].strip() == "..."
    assert max(map(len, lines)) <= 40
    monkeypatch.setenv("COLUMNS", "20")
    assert "and 1 columns more, such as val/loss" in repr(trainer.history) or len(lines[0]) <= 40


def history_of(**columns):
    history = History()
    for index, values in enumerate(zip(*columns.values(), strict=True)):
        row = {"step": index + 1, "epoch": index, "mode": "val", "span": "epoch"}
        history.rows.append({**row, **dict(zip(columns, values, strict=True))})
    return history


@settings(deadline=None)
@given(st.lists(st.floats(allow_infinity=False), min_size=1, max_size=9))
def test_the_best_is_never_nan(values):
    history = history_of(loss=values, accuracy=values)
    if all(np.isnan(values)):
        with pytest.raises(KeyError, match="NaN"):
            history.best("val/loss")
        return
    assert history.best("val/loss")["loss"] == np.nanmin(values)
    assert history.best("val/accuracy")["accuracy"] == np.nanmax(values)
    assert history.best("val/accuracy", mode="min")["loss"] == np.nanmin(values)


def test_a_metric_that_is_not_there_is_an_error_that_lists_what_is():
    with pytest.raises(KeyError, match="there are: val/loss"):
        history_of(loss=[1.0]).series("val/los")
    with pytest.raises(KeyError, match="there are: val/loss"):
        history_of(loss=[1.0]).best("train/loss")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(), min_size=1, max_size=5), st.sampled_from(["a.csv", "a.jsonl"]))
def test_what_is_written_is_read_back_the_same(tmp_path_factory, values, name):
    history = history_of(loss=values, accuracy=values[::-1])
    path = tmp_path_factory.mktemp("history") / name
    (history.to_csv if name == "a.csv" else history.to_jsonl)(path)
    np.testing.assert_equal(solstice.read_history(path).rows, history.rows)


def test_a_file_that_is_no_history_is_told(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a table of metrics"):
        solstice.read_history(path)
