"""Values of the members of a population in histories, callbacks, files and plots."""

import io
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from members import Members, epochs_of, fitted

import solstice
from solstice import metrics
from solstice.callbacks import (
    Checkpoint,
    EarlyStopping,
    LearningRate,
    Logging,
    NaNGuard,
    NormMonitor,
    ProgressBar,
)
from solstice.history import History, read_history
from solstice.metrics import PerMember
from solstice.testing import Run, verify_resume

NAN = math.nan
TRAIN = [[4, 3, NAN], [2, 3, NAN], [3, 1, NAN]]
VAL = [[9, 5, NAN], [1, 7, NAN], [6, 2, NAN]]
MOMENT = {"step", "epoch", "mode", "span"}

tables = st.integers(1, 3).flatmap(
    lambda count: st.lists(
        st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, NAN]), min_size=count, max_size=count),
        min_size=1,
        max_size=5,
    )
)


@pytest.fixture(scope="module")
def history():
    return fitted([History()], TRAIN, VAL)[0].history


def same_rows(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert isinstance(one[name], PerMember) == isinstance(value, PerMember), name
            np.testing.assert_array_equal(one[name], value)


def test_rows_have_the_values_of_each_member(history):
    assert history.names() == ["train/loss", "train/accuracy", "train/pairs.num_out_of_range"] + [
        f"val/{name}" for name in ("loss", "accuracy", "pairs.num_out_of_range")
    ]
    steps, values = history.series("val/loss")
    assert steps == [1, 2, 3]
    np.testing.assert_array_equal(values, VAL)
    for row in history.rows:
        assert isinstance(row["loss"], PerMember)
        assert row["pairs.confusion_matrix"].shape == (3, 2, 2)


def test_the_history_of_a_member_is_that_of_its_own_run(history):
    for member in range(3):
        column = [[row[member]] for row in TRAIN], [[row[member]] for row in VAL]
        alone = fitted([History()], *column)[0].history.member(0)
        same_rows(history.member(member).rows, alone.rows)
        assert not any(isinstance(v, PerMember) for row in alone.rows for v in row.values())
    with pytest.raises(ValueError, match="member must be between 0 and 2"):
        history.member(3)
    with pytest.raises(ValueError, match="not of a population"):
        History().member(0)


@settings(deadline=None, max_examples=25)
@given(tables, st.sampled_from(["min", "max"]))
def test_the_best_is_of_one_member_at_one_epoch_and_never_nan(values, mode):
    found = History()
    for epoch, row in enumerate(values):
        losses = metrics.Mapped(jax.tree.map(jnp.asarray, _Loss(np.float32(row)))).compute()
        moment = {"step": epoch + 1, "epoch": epoch, "mode": "val", "span": "epoch"}
        found.rows.append({**moment, **losses, "other": 7})
    table = np.array(values)
    if np.isnan(table).all():
        with pytest.raises(KeyError, match="NaN in all"):
            found.best("val/loss", mode)
        return
    best = found.best("val/loss", mode)
    assert best["loss"] == (np.nanmin(table) if mode == "min" else np.nanmax(table))
    assert table[best["epoch"], best["member"]] == best["loss"]
    assert best == found.member(best["member"]).rows[best["epoch"]] | {"member": best["member"]}
    assert not np.isin(table[: best["epoch"]], best["loss"]).any()  # the first of equal ones


class _Loss(solstice.Metrics):
    loss: jax.Array

    def merge(self, other):
        return other

    def compute(self):
        return {"loss": self.loss}


def test_a_metric_named_member_is_not_lost():
    class Named(Members):
        def eval_step(self, batch):
            each = jax.vmap(lambda x: metrics.MetricsCollection(member=metrics.Mean(x)))
            return self, metrics.Mapped(each(batch.T))

    trainer = solstice.Trainer()
    trainer.fit(Named(), epochs_of([[3, 4]]))
    best = trainer.history.best("train/member", "min")
    assert (best["member"], best["metric/member"]) == (0, 3)


def test_the_table_has_the_best_member_the_mean_and_the_spread(history, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    head, first, *_, last = repr(history).splitlines()
    assert head.split()[:5] == ["epoch", "step", "train/loss", "val/loss", "train/accuracy"]
    assert first.split()[:8] == ["1", "1", "3", "[1]", "(3.5)", "5", "[1]", "(7)"]
    assert last == "of the members: the best [its number] (the mean)"
    assert "<th>val/loss std</th>" in history._repr_html_()
    assert "<td>1 [0]</td>" in history._repr_html_()


def test_the_own_history_counts_the_numbers_of_each_member(recwarn):
    many = np.arange(300.0)[None].tolist()
    trainer, _ = fitted([], many)
    assert trainer.history.best("train/loss")["member"] == 0
    assert [str(warning.message) for warning in recwarn] == []
    alone, _ = fitted([History(scalars_only=True)], TRAIN)
    assert {*alone.history.rows[0]} - MOMENT == {"loss", "accuracy", "pairs.num_out_of_range"}


@pytest.mark.parametrize("name", ["to_csv", "to_jsonl"])
def test_files_are_read_back_the_same(history, name, tmp_path):
    path = tmp_path / "history"
    getattr(history, name)(path)
    same_rows(read_history(path).rows, history.rows)


@pytest.mark.parametrize("kind", [solstice.loggers.CSV, solstice.loggers.JSONLines])
def test_loggers_of_files_write_them_whole(kind, tmp_path):
    path = tmp_path / "log"
    trainer, _ = fitted([kind(path)], TRAIN, VAL)
    same_rows(read_history(path).rows, trainer.history.rows)


def test_something_else_in_a_file_is_refused(tmp_path):
    path = tmp_path / "history.jsonl"
    moment = {"step": 1, "epoch": 0, "mode": "train", "span": "epoch"}
    path.write_text(json.dumps(moment | {"loss": {"values": [1.0]}}))
    with pytest.raises(ValueError, match="not a table of metrics"):
        read_history(path)


def test_a_frame_has_a_row_for_each_member(history):
    pandas = pytest.importorskip("pandas")
    frame = history.to_pandas()
    assert len(frame) == 3 * len(history.rows)
    table = frame[frame["mode"] == "val"].pivot(index="epoch", columns="member", values="loss")
    pandas.testing.assert_frame_equal(
        table, pandas.DataFrame(VAL), check_names=False, check_dtype=False, check_index_type=False
    )


def test_a_resumed_history_is_that_of_the_whole_run(tmp_path):
    whole, _ = fitted([], TRAIN, VAL)
    for epochs in (2, 3):
        trainer = solstice.Trainer([Checkpoint(tmp_path / "run")])
        data = epochs_of(TRAIN), epochs_of(VAL)
        trainer.fit(Members(), *data, num_epochs=epochs, resume="last")
    same_rows(trainer.history.rows, whole.history.rows)


def plainly(values, patience):
    """The epochs that EarlyStopping on the best member takes, the best value and its epoch."""
    best, best_epoch, waited = None, None, 0
    for epoch, row in enumerate(values):
        value = min((x for x in row if not math.isnan(x)), default=NAN)
        if not math.isnan(value) and (best is None or value < best):
            best, best_epoch, waited = value, epoch, 0
            continue
        waited += 1
        if waited == patience:
            break
    return epoch + 1, best, best_epoch


@settings(deadline=None, max_examples=10)
@given(st.sampled_from([1, 2]), st.data())
def test_early_stopping_looks_at_the_best_member(patience, data):
    row = st.lists(st.sampled_from([0.0, 1.0, 2.0, NAN]), min_size=3, max_size=3)
    values = data.draw(st.lists(row, min_size=1, max_size=5))
    callback = EarlyStopping(patience=patience)
    _, epochs = fitted([callback], [[0.0] * 3] * len(values), values)
    assert (epochs, callback.best, callback.best_epoch) == plainly(values, patience)


def test_the_best_checkpoint_is_that_of_the_best_member(tmp_path):
    keeper = Checkpoint(tmp_path / "run", monitor="val/loss")
    fitted([keeper], TRAIN, VAL)
    assert keeper.best.name == "step-2"


@pytest.mark.parametrize("name", ["train/los", "val/pairs"])
def test_a_misspelt_monitor_is_refused_before_the_first_step(name):
    with pytest.raises(KeyError, match="there is no metric"):
        fitted([EarlyStopping(name)], TRAIN, VAL)


def test_an_array_for_each_member_is_no_monitor():
    with pytest.raises(ValueError, match="which is an array of 2 axes"):
        fitted([EarlyStopping("val/pairs.confusion_matrix")], TRAIN, VAL)


def test_a_bar_shows_the_best_and_the_median():
    out = io.StringIO()
    fitted([ProgressBar(file=out)], TRAIN[:1], VAL[:1])
    line = re.sub(r"[\d,]+ examples/s", "RATE", out.getvalue())
    assert line == (
        "epoch 1/1  step 1  RATE"
        "  train/loss 3.0000 (median 3.5000)  train/accuracy -3.0000 (median -3.5000)"
        "  val/loss 5.0000 (median 7.0000)  val/accuracy -5.0000 (median -7.0000)\n"
    )


def test_numbers_go_to_functions_and_arrays_are_left_out():
    lines = []
    with pytest.warns(UserWarning, match=r"`pairs.confusion_matrix`, float64\[3, 2, 2\]\. Choose"):
        fitted([Logging(lambda values, step: lines.append((values, step)))], TRAIN[1:2])
    zero = "train/pairs.num_out_of_range"
    assert lines == [
        (
            {
                "train/loss/best": 2.0,
                "train/loss/median": 2.5,
                "train/accuracy/best": -2.0,
                "train/accuracy/median": -2.5,
                f"{zero}/best": 0.0,
                f"{zero}/median": 0.0,
            },
            1,
        )
    ]


def test_members_that_are_all_nan_are_nan_everywhere():
    out, values = io.StringIO(), [[NAN, NAN]]
    trainer, _ = fitted([ProgressBar(file=out, only=["loss"])], values, values)
    assert "val/loss nan (median nan)" in out.getvalue()
    assert "nan" in repr(trainer.history)
    assert trainer.history.plot(only=["loss"]) is not None


def lines_of(figure, index=0):
    return [np.asarray(line.get_ydata(), float) for line in figure.axes[index].lines]


def test_a_plot_is_a_fan_with_the_best_marked(history):
    figure = history.plot(only=["loss"])
    found = lines_of(figure)
    for table, style in ((TRAIN, "-"), (VAL, "--")):
        for member in (0, 1):
            column = np.float64(table)[:, member]
            same = [
                line
                for line, y in zip(figure.axes[0].lines, found, strict=True)
                if len(y) == 3 and np.array_equal(y, column)
            ]
            assert {line.get_linestyle() for line in same} == {style}
            assert len(same) == (2 if member == 0 else 1)  # the best member, 0, is drawn over all
    (star,) = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (2, 1)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["train, member 0 of 3", "val, member 0 of 3"]


def test_a_removed_member_has_no_line_after_it():
    values = [[4 - 0.1 * t, 3.0 if t < 20 else NAN] for t in range(40)]
    trainer, _ = fitted([], values)
    (line,) = [y for y in lines_of(trainer.history.plot(only=["loss"])) if np.isnan(y).any()]
    assert np.isnan(line[20:]).all()
    assert not np.isnan(line[:20]).any()


def limits(values):
    return fitted([], values)[0].history.plot(only=["loss"]).axes[0].get_ylim()


@pytest.mark.parametrize("bad", [1e9, math.inf, NAN])
def test_a_diverged_member_does_not_flatten_the_others(bad):
    low, high = limits([[2, 3, 1, bad], [1, 2, 1, bad]])
    assert low <= 1
    assert 2 <= high < 10


def test_a_usual_spread_is_drawn_whole():
    low, high = limits([[2, 3, 1, 6], [1, 2, 1, 4]])
    assert low <= 1
    assert high >= 6


def test_populations_are_compared(history):
    figure = solstice.compare({"one": history, "other": history.member(1)}, only=["loss"])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [
        "one train, member 0 of 3",
        "one val, member 0 of 3",
        "other train",
        "other val",
    ]


def test_an_evaluation_by_itself_returns_and_draws_members(history):
    trainer, _ = fitted([], TRAIN, VAL)
    found = trainer.test(Members(), [np.float32([[7, 8, 9]])])
    assert isinstance(found["loss"], PerMember)
    found = [y.tolist() for y in lines_of(trainer.history.plot(only=["loss"]))]
    assert found.count([7, 7]) == 1  # the test of the best member, across the panel


class Quadratic(solstice.Experiment):
    """Gradient descent on the square of each of two params."""

    params: dict[str, jax.Array]
    hyperparams: dict[str, jax.Array]

    def train_step(self, batch):
        rate = self.hyperparams["learning_rate"]
        params = jax.tree.map(lambda x: x - rate * x, self.params)
        return solstice.replace(self, params=params), {"loss": params["a"] + jnp.mean(batch)}

    def eval_step(self, batch):
        return self, {"loss": self.params["a"]}


def quadratic(rate):
    params = {"a": jnp.asarray(3.0), "b": jnp.full(2, 4.0)}
    return Quadratic(params, {"learning_rate": jnp.asarray(rate)})


def test_callbacks_measure_each_member():
    data, rates = [np.zeros((2, 1), np.float32)], [0.5, 0.25]
    trainer = solstice.Trainer([LearningRate(), NormMonitor()])
    trainer.fit(solstice.Population(quadratic, rate=rates), data, num_epochs=2)
    for member, rate in enumerate(rates):
        alone = solstice.Trainer([LearningRate(), NormMonitor()])
        alone.fit(quadratic(rate), data, num_epochs=2)
        found = trainer.history.member(member).rows
        assert [row.keys() for row in found] == [row.keys() for row in alone.history.rows]
        assert {"lr", "param_norm", "param_norm/b"} < found[0].keys()
        for one, other in zip(found, alone.history.rows, strict=True):
            for name in one.keys() - MOMENT:
                np.testing.assert_allclose(one[name], other[name], rtol=1e-6)


def test_the_best_rate_is_that_of_one_member():
    data = [np.zeros((2, 1), np.float32)]
    with pytest.raises(
        ValueError, match=r"each of 2 members: .*find_learning_rate\(pop\[0\], train_ds"
    ):
        solstice.find_learning_rate(
            solstice.Population(quadratic, rate=[0.5, 0.25]), data, steps=10
        )


def make_run():
    batches = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    callbacks = [History(every=2), EarlyStopping("train/loss"), NaNGuard(every=2)]
    train_ds = solstice.data.batches(batches, 2, shuffle=True, seed=0)
    return Run(Members(), train_ds, train_ds, callbacks, num_epochs=3)


@pytest.mark.slow
def test_a_run_killed_within_an_epoch_has_the_same_history():
    verify_resume(make_run, kill_at=[9])
