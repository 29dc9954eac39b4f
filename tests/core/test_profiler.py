"""Profiler: a window of steps, that no call is cut for."""

import gzip
import json

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.callbacks import Profiler


class Mean(solstice.Experiment):
    def train_step(self, batch):
        return self, {"loss": jnp.mean(batch @ batch)}

    def eval_step(self, batch):
        return self.train_step(batch)


def some(count):
    return [np.eye(8, dtype=np.float32)] * count


class Calls(solstice.Callback):
    every = None

    def __init__(self):
        self.ends = []

    def on_call_end(self, record):
        if record.mode == "train":
            self.ends.append(record.step)


def test_a_trace_of_the_window_is_written_and_told(tmp_path, caplog):
    calls = Calls()
    trainer = solstice.Trainer([Profiler(tmp_path, start=5, steps=4), calls], steps_per_call=3)
    trainer.fit(Mean(), some(10), some(2), num_epochs=2)
    assert calls.ends[:5] == [3, 5, 8, 9, 10]
    told = caplog.text
    assert "profiled steps 6 to 9." in told
    (trace,) = tmp_path.glob("**/perfetto_trace.json.gz")
    assert str(trace) in told
    assert len(json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]) > 10


@pytest.mark.parametrize(("start", "told"), [(0, "1 to 4"), (3, "4 to 7"), (8, "9 to 12")])
def test_the_window_lies_within_a_call_or_an_epoch(tmp_path, caplog, start, told):
    """By default, a call would be as long as the epoch."""
    calls = Calls()
    trainer = solstice.Trainer([Profiler(tmp_path, start=start, steps=4), calls])
    trainer.fit(Mean(), some(10), num_epochs=2)
    assert f"profiled steps {told}." in caplog.text
    assert {start, start + 4} - {0} <= {*calls.ends}


def test_a_resumed_run_counts_from_its_start(tmp_path, caplog):
    def fit(*more, **options):
        saver = solstice.callbacks.Checkpoint(tmp_path / "run")
        trainer = solstice.Trainer([saver, *more])
        trainer.fit(Mean(), some(10), **options)

    fit(max_steps=10)
    fit(Profiler(tmp_path / "trace", start=2, steps=3), resume="last", max_steps=20)
    assert "profiled steps 13 to 15." in caplog.text


def test_a_run_that_ends_before_or_within_the_window_is_told(tmp_path, caplog):
    solstice.Trainer([Profiler(tmp_path / "a", start=50)]).fit(Mean(), some(3))
    assert "nothing was profiled: the run had 3 steps, and start=50" in caplog.text
    assert not (tmp_path / "a").exists()
    trainer = solstice.Trainer([Profiler(tmp_path / "b", start=1, steps=50)], steps_per_call=2)
    trainer.fit(Mean(), some(6))
    assert "profiled steps 2 to 6." in caplog.text
    caplog.clear()
    trainer.test(Mean(), some(2))
    assert caplog.text == ""


def test_an_exception_closes_the_window(tmp_path):
    class Fails(solstice.Callback):
        def on_epoch_end(self, record):
            raise RuntimeError("as asked")

    profiler = Profiler(tmp_path, start=1, steps=50)
    trainer = solstice.Trainer([profiler, Fails()], steps_per_call=2)
    for _ in range(2):  # a window left open would refuse a second one
        with pytest.raises(RuntimeError, match="as asked"):
            trainer.fit(Mean(), some(6))
    assert list(tmp_path.glob("**/perfetto_trace.json.gz"))


def test_bad_windows_are_refused():
    with pytest.raises(ValueError, match="steps must be 1 or more; it is 0"):
        Profiler("a", steps=0)
