"""Ctrl-C at any point leaves the newest Experiment in the caller's hands."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice._engine import BlockSize, Feeder, StagingBuffers, _block_size
from solstice._engine._interrupts import interrupts_guarded, interrupts_held

MAIN: Any = threading.main_thread().ident


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """Python's own, also where the tests run in the background, whose shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Sum(solstice.Experiment):
    total: Any

    def train_step(self, batch: Any) -> Any:
        return solstice.replace(self, total=self.total + batch.sum()), {"sum": batch.sum()}

    def eval_step(self, batch: Any) -> Any:
        return self, {}


def batches(stop: int) -> Iterator[np.ndarray]:
    """Ones for ever, with a Ctrl-C before the batch of index `stop`."""
    index = 0
    while True:
        if index == stop:
            signal.raise_signal(signal.SIGINT)
        yield np.ones(1, np.float32)
        index += 1


@pytest.mark.parametrize("stop", [1, 5, 40, 64])
def test_an_interrupt_in_the_data_leaves_every_whole_call(stop: int):
    trainer = solstice.Trainer(steps_per_call=8)
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.fit(Sum(jnp.zeros(())), batches(stop), max_steps=100)
    total = float(trainer.experiment.total)
    assert stop - 8 <= total <= stop
    assert total % 8 == 0 or total == stop
    assert caught.value.experiment.total == total if total else True


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("stall", [1, 5, 40, 64])
def test_an_interrupt_ends_a_stall_of_the_data_at_once(stall: int, prefetch: int):
    go_on = threading.Event()

    def stalling() -> Iterator[np.ndarray]:
        for index in range(100):
            if index == stall:
                signal.pthread_kill(MAIN, signal.SIGINT)
                go_on.wait()  # set when `fit` has ended
            yield np.ones(1, np.float32)

    trainer = solstice.Trainer(steps_per_call=8, prefetch=prefetch)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            trainer.fit(Sum(jnp.zeros(())), stalling)
    finally:
        go_on.set()
        for thread in threading.enumerate():
            if thread.name == "solstice-prefetch":
                thread.join()
    total = float(trainer.experiment.total)
    assert total <= stall
    assert prefetch or total >= stall - 8
    assert caught.value.experiment.total == total if total else True


def test_a_slow_data_set_gives_what_it_has(monkeypatch: pytest.MonkeyPatch):
    """A block does not wait for batches that take longer than the steps that they are for."""
    monkeypatch.setattr(_block_size, "PATIENCE", 0.25)
    clock = [0.0]
    seen: list[int] = []

    def slow() -> Iterator[np.ndarray]:
        for _ in range(10):
            clock[0] += 0.1
            yield np.ones(1, np.float32)

    slots = StagingBuffers(BlockSize(32))
    feeder = Feeder(slow(), slots, lambda batch: None, clock=lambda: clock[0])
    while (block := feeder.take(32)) is not None:
        seen.append(len(block))
    assert seen == [4, 4, 2]


def test_an_interrupt_waits_while_it_is_held():
    reached = []

    def work() -> None:
        with interrupts_guarded(saves=False):
            with interrupts_held():
                signal.raise_signal(signal.SIGINT)
                reached.append("held")
            reached.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["held"]


def test_the_handler_is_given_back():
    before = signal.getsignal(signal.SIGINT)
    solstice.Trainer().fit(Sum(jnp.zeros(())), [np.ones(1, np.float32)])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_the_users_own_is_left_alone():
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        trained = solstice.Trainer().fit(Sum(jnp.zeros(())), batches(3), max_steps=5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
    assert trained.total == 5


def test_a_fit_runs_in_a_thread():
    result: list[Any] = []

    def work() -> None:
        trained = solstice.Trainer().fit(Sum(jnp.zeros(())), [np.ones(2, np.float32)])
        result.append(float(trained.total))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert result == [2]
