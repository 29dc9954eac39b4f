"""Logging: names, steps and windows, to any function and to the standard logger."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice.callbacks import Logging


class Mean(solstice.Experiment):
    def train_step(self, batch):
        return self, {"loss": jnp.mean(batch), "size": 1.0 * batch.shape[0]}

    def eval_step(self, batch):
        return self, {"loss": jnp.mean(batch), "size": 1.0 * batch.shape[0]}

    def predict_step(self, batch):
        return batch


class WithArray(solstice.Metrics):
    values: object

    def merge(self, other):
        return WithArray(self.values + other.values)

    def compute(self):
        return {"values": self.values, "first": self.values[0]}


class Arrays(Mean):
    def eval_step(self, batch):
        return self, WithArray(batch)


def some(*values):
    return [np.full(2, value, np.float32) for value in values]


def logged(run, **options):
    """What is logged in a run: pairs of metrics and step."""
    lines = []
    run(solstice.Trainer([Logging(lambda metrics, step: lines.append((metrics, step)), **options)]))
    return lines


def test_epochs_are_logged_by_mode_and_step():
    lines = logged(lambda t: t.fit(Mean(), some(1, 3), some(5), num_epochs=2))
    train, val = {"train/loss": 2.0, "train/size": 2.0}, {"val/loss": 5.0, "val/size": 2.0}
    assert lines == [(train, 2), (val, 2), (train, 4), (val, 4)]


@pytest.mark.parametrize(("method", "mode"), [("test", "test"), ("validate", "val")])
def test_an_evaluation_is_logged_by_its_mode(method, mode):
    lines = logged(lambda t: getattr(t, method)(Mean(), some(1, 3)))
    assert lines == [({f"{mode}/loss": 2.0, f"{mode}/size": 2.0}, 0)]


def test_a_prediction_has_nothing_to_log():
    assert logged(lambda t: list(t.predict(Mean(), some(1))), every=1) == []


def test_values_are_floats():
    ((metrics, step),) = logged(lambda t: t.fit(Mean(), some(1)))
    assert {type(value) for value in metrics.values()} == {float}
    assert type(step) is int


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(1, 5), num_epochs=st.integers(1, 3), every=st.integers(1, 6))
def test_every_logs_the_window_since_the_last_time_and_the_epoch_besides(steps, num_epochs, every):
    epochs = [
        [np.float32([10 * e + i] * (1 + i % 3)) for i in range(steps)] for e in range(num_epochs)
    ]
    lines = logged(
        lambda t: t.fit(Mean(), lambda epoch: epochs[epoch], num_epochs=num_epochs),
        every=every,
        only=("loss",),
    )
    batches = [batch for epoch in epochs for batch in epoch]
    expected = []
    for step in range(1, len(batches) + 1):
        if step % every == 0:
            expected.append((np.concatenate(batches[step - every : step]).mean(), step))
        if step % steps == 0:
            expected.append((np.concatenate(batches[step - steps : step]).mean(), step))
    assert [step for _, step in lines] == [step for _, step in expected]
    found = [metrics["train/loss"] for metrics, _ in lines]
    assert found == pytest.approx([float(loss) for loss, _ in expected], rel=1e-5)


def test_every_does_not_log_steps_of_an_evaluation():
    lines = logged(lambda t: t.fit(Mean(), some(1), some(2, 3)), every=1, only=["loss"])
    assert lines == [({"train/loss": 1.0}, 1), ({"train/loss": 1.0}, 1), ({"val/loss": 2.5}, 1)]


def test_only_the_named_metrics_are_logged():
    with pytest.warns(UserWarning, match="asks for 'absent'"):
        lines = logged(lambda t: t.fit(Mean(), some(1), some(2)), only={"size", "absent"})
    assert lines == [({"train/size": 2.0}, 1), ({"val/size": 2.0}, 1)]


def test_where_nothing_is_to_be_logged_nothing_is_called():
    with pytest.warns(UserWarning, match="asks for 'absent'"):
        assert logged(lambda t: t.fit(Mean(), some(1)), only=("absent",)) == []


def test_arrays_are_left_out_and_named_once():
    with pytest.warns(UserWarning, match="leaves out|give no metrics|cannot be compiled") as said:
        lines = logged(lambda t: t.fit(Arrays(), some(1, 2), some(1, 2), num_epochs=2))
    assert [metrics for metrics, _ in lines[1::2]] == [{"val/first": 3.0}] * 2
    assert [str(warning.message) for warning in said] == [
        "Logging leaves out metrics that are not numbers: `values`, float32[2]. "
        "Choose metrics with `only=`"
    ]
    chosen = logged(lambda t: t.test(Arrays(), some(1, 2)), only=["first"])
    assert chosen == [({"test/first": 3.0}, 0)]


def test_a_logger_names_what_its_tool_cannot_show():
    class Numbers(solstice.loggers.Logger):
        def open(self, start):
            self.rows = []

        def write(self, row):
            self.rows.append(row)

        def takes(self, value):
            return np.ndim(value) == 0

    logger = Numbers()
    with pytest.warns(UserWarning, match="leaves out|give no metrics|cannot be compiled") as said:
        solstice.Trainer([logger]).test(Arrays(), some(1, 2))
    assert [str(warning.message) for warning in said] == [
        "Numbers leaves out values that it cannot show: `values`, float32[2]. Choose metrics with "
        "`only=`; solstice.loggers.JSONLines accepts all"
    ]
    assert logger.rows == [{"step": 0, "epoch": 0, "mode": "test", "span": "epoch", "first": 3.0}]


def test_the_standard_logger_gets_a_line_for_each(caplog):
    with caplog.at_level(logging.INFO, logger="solstice"):
        solstice.Trainer([Logging(only=("loss",))]).fit(Mean(), some(1, 2), some(0.125))
    assert [record.getMessage() for record in caplog.records] == [
        "step 2  train/loss 1.5",
        "step 2  val/loss 0.125",
    ]
    assert {(record.name, record.levelname) for record in caplog.records} == {("solstice", "INFO")}


def test_the_standard_logger_is_silent_above_info(caplog):
    with caplog.at_level(logging.WARNING, logger="solstice"):
        solstice.Trainer([Logging()]).fit(Mean(), some(1))
    assert caplog.records == []


def test_an_error_of_the_function_comes_out():
    def full(metrics, step):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        solstice.Trainer([Logging(full)]).fit(Mean(), some(1))


@pytest.mark.parametrize("every", [0, -1])
def test_a_cadence_below_one_is_refused(every):
    with pytest.raises(ValueError, match=f"every must be 1 or more steps; it is {every}"):
        Logging(every=every)
