"""Reading ahead in a thread changes nothing, and leaves nothing behind."""

import itertools
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice._engine._prefetch import prefetched


class Sum(solstice.Experiment):
    total: Any

    def train_step(self, batch: Any) -> Any:
        total = 2 * self.total + batch.sum()
        return solstice.replace(self, total=total), {"sum": batch.sum()}

    def eval_step(self, batch: Any) -> Any:
        return self, {"sum": batch.sum()}


BATCHES = [np.float32([i, i]) for i in range(9)] + [np.float32([3])]


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "solstice-prefetch"]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(), max_size=30), st.integers(1, 5))
def test_the_batches_are_the_same(batches: list[int], count: int):
    assert list(prefetched(iter(batches), count)) == batches
    assert threads() == []


def test_a_run_has_the_same_result():
    expected = solstice.Trainer().fit(Sum(jnp.zeros(())), BATCHES, BATCHES, num_epochs=2)
    trainer = solstice.Trainer(prefetch=3)
    assert trainer.fit(Sum(jnp.zeros(())), BATCHES, BATCHES, num_epochs=2).total == expected.total
    assert trainer.test(expected, BATCHES) == solstice.Trainer().test(expected, BATCHES)
    assert threads() == []


def failing() -> Iterator[np.ndarray]:
    yield from BATCHES[:5]
    raise OSError("the disk is gone")


def test_an_exception_comes_with_its_own_traceback_after_the_batches_before_it():
    trainer = solstice.Trainer(prefetch=2)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        trainer.fit(Sum(jnp.zeros(())), failing)
    assert any(frame.name == "failing" for frame in traceback.extract_tb(caught.tb))
    expected = solstice.Trainer().fit(Sum(jnp.zeros(())), BATCHES[:5])
    assert trainer.experiment.total == expected.total
    assert threads() == []


def test_a_run_that_is_stopped_leaves_no_thread():
    class StopAt(solstice.Callback):
        def on_step_end(self, record: solstice.Record) -> None:
            raise solstice.Stop

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield BATCHES[0]

    solstice.Trainer([StopAt()], prefetch=2).fit(Sum(jnp.zeros(())), endless)
    solstice.Trainer(prefetch=2).fit(Sum(jnp.zeros(())), endless, max_steps=3)
    assert threads() == []


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="prefetch must be 0 or more"):
        solstice.Trainer(prefetch=-1)


def test_ctrl_c_while_the_thread_starts_ends_it(monkeypatch: pytest.MonkeyPatch):
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(prefetched(itertools.count(), 2))
    for thread in threading.enumerate():
        if thread.name == "solstice-prefetch":
            thread.join()
    assert threads() == []
