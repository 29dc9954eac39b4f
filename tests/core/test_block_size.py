"""No call takes long: Ctrl-C, a signal and callbacks wait for its end."""

import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clocks import stopped
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice._engine import BlockSize, Feeder, StagingBuffers, _block_size, _staging
from solstice._engine._buffer import InUse

SECONDS_PER_CALL = 0.25


@pytest.fixture(autouse=True)
def usual_limit(monkeypatch: pytest.MonkeyPatch, no_hurry: None) -> None:
    monkeypatch.setattr(_block_size, "SECONDS_PER_CALL", SECONDS_PER_CALL)


@settings(deadline=None)
@given(
    step=st.floats(1e-6, 10),
    most=st.integers(1, 500),
    first=st.integers(1, 500),
)
def test_calls_become_as_long_as_they_may_be_and_no_longer(step: float, most: int, first: int):
    pace = BlockSize(most, min(first, most))
    rooms = [pace.room]
    for _ in range(10):
        pace.learn(pace.room, pace.room * step, was_awaited=True)
        rooms.append(pace.room)
    fits = max(int(SECONDS_PER_CALL / step), 1)
    assert rooms[-1] == pytest.approx(min(fits, most), abs=1)
    assert all(room <= min(most, 8 * before) for before, room in pairwise(rooms))


@settings(deadline=None)
@given(steps=st.integers(1, 500), seconds=st.floats(0, 100))
def test_a_call_that_nobody_waited_for_shortens_none(steps: int, seconds: float):
    pace = BlockSize(500, steps)
    pace.learn(steps, seconds, was_awaited=False)
    assert pace.room >= steps


@pytest.mark.parametrize(("compiles", "room"), [(False, 1), (True, 8)])
def test_compilation_is_no_part_of_a_call(
    monkeypatch: pytest.MonkeyPatch, compiles: bool, room: int
):
    clock = stopped(monkeypatch, _staging)
    slots = StagingBuffers(BlockSize(8, 1))
    block = Feeder(iter([np.ones(1)]), slots, lambda batch: None).take(1)
    assert block is not None
    block.slot.mark_in_use([jnp.ones(())], 1, clock.now)
    clock.now += 100
    if compiles:
        block.slot.begin()
    for _ in range(2):  # as many as there are slots
        Feeder(iter([np.ones(1)]), slots, lambda batch: None).take(1)
    assert slots.sizes.room == room


def take_steps_for(monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> None:
    """All steps take longer than a call may, or all less."""
    monkeypatch.setattr(_block_size, "SECONDS_PER_CALL", 0.0 if slow else math.inf)


class Loops(solstice.Experiment):
    """Repeats as often as the batch says, which is in no jaxpr."""

    total: Any

    def train_step(self, batch: Any) -> Any:
        def turn(carry: Any) -> Any:
            count, x = carry
            return count + 1, jnp.sin(x) + 1

        _, total = jax.lax.while_loop(lambda carry: carry[0] < batch, turn, (0, self.total))
        return solstice.replace(self, total=total), {"total": total}

    def eval_step(self, batch: Any) -> Any:
        return self, {"total": self.total}


class Calls(solstice.Callback):
    """How many steps the calls had."""

    every = None

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_call_end(self, record: solstice.Record) -> None:
        self.steps.append(record.step - sum(self.steps))


def test_a_step_of_unknown_length_runs_alone_at_first_and_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
):
    take_steps_for(monkeypatch, slow=False)
    calls, epoch = Calls(), [np.int32(count % 7) for count in range(400)]
    trained = solstice.Trainer([calls]).fit(Loops(jnp.zeros(())), epoch, num_epochs=2)
    alike = solstice.Trainer(steps_per_call=9).fit(Loops(jnp.zeros(())), epoch, num_epochs=2)
    assert calls.steps[:6] == [1, 1, 8, 8, 64, 64]  # what a call took is known two calls later
    assert sum(calls.steps) == 800
    assert trained.total == alike.total


class Multiplies(Loops):
    def train_step(self, batch: Any) -> Any:
        product = self.total @ self.total
        return solstice.replace(self, total=product / product.max()), {}


def test_the_first_call_has_few_steps_where_they_may_be_slow():
    calls, start = Calls(), Multiplies(jnp.ones((400, 400)) / 400)
    solstice.Trainer([calls]).fit(start, [np.int32(0)] * 40)
    assert calls.steps[0] == 2**33 // (16 * 2 * 400**3) == 4
    assert sum(calls.steps) == 40


def test_slow_steps_run_few_a_call(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    take_steps_for(monkeypatch, slow=True)
    calls = Calls()
    trainer = solstice.Trainer([calls])
    trainer.fit(Loops(jnp.zeros(())), [np.int32(1)] * 4)
    assert calls.steps == [1, 1, 1, 1]
    print(trainer.explain())
    text = capsys.readouterr().out
    assert "up to 512 steps a call" in text
    assert "at most 1 steps for now, to take at most 0.25 s" in text


def test_the_choice_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch):
    take_steps_for(monkeypatch, slow=True)
    calls = Calls()
    solstice.Trainer([calls], steps_per_call=2).fit(Loops(jnp.zeros(())), [np.int32(1)] * 6)
    assert calls.steps == [2, 2, 2]


def test_a_trainer_leaves_out_what_a_call_compiles(monkeypatch: pytest.MonkeyPatch):
    begun: list[InUse] = []
    begin = InUse.begin

    def noted(slot: InUse) -> None:
        begun.append(slot)
        begin(slot)

    monkeypatch.setattr(InUse, "begin", noted)
    for _ in range(2):  # the second compiles nothing
        start = Multiplies(jnp.ones((3, 3)))  # a shape of this test alone
        solstice.Trainer(steps_per_call=2).fit(start, [np.int32(0)] * 5)
        assert len(begun) == 1


class Head(solstice.Experiment):
    """A frozen part and one that is trained."""

    frozen: Any
    trained: Any

    def train_step(self, batch: Any) -> Any:
        trained = self.trained + self.frozen.mean() * batch
        return solstice.replace(self, trained=trained), {"mean": trained.mean()}

    def eval_step(self, batch: Any) -> Any:
        return self, {"mean": self.trained.mean()}


LARGE, SMALL = jnp.ones(1000), jnp.zeros(10)


@pytest.mark.parametrize("steps_per_call", [None, 1, 2, 8])
def test_a_step_that_changes_much_memory_runs_without_a_loop(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    steps_per_call: int | None,
):
    monkeypatch.setattr(_block_size, "CHANGED_BYTES", {jax.default_backend(): 3999})
    calls = Calls()
    trainer = solstice.Trainer([calls], steps_per_call=steps_per_call)
    trainer.fit(Head(SMALL, LARGE), [np.float32(1)] * 4)
    assert calls.steps == [1, 1, 1, 1]
    assert "a step changes 4,000 bytes" in trainer.explain()
    is_overridden = (steps_per_call or 1) > 1
    said = f"steps_per_call={steps_per_call} runs as 1: a step changes" in caplog.text
    assert said == is_overridden


@pytest.mark.parametrize(
    ("experiment", "limit"), [(Head(LARGE, SMALL), 3999), (Head(SMALL, LARGE), 4000)]
)
def test_memory_that_a_step_only_reads_does_not_count(
    monkeypatch: pytest.MonkeyPatch, experiment: Head, limit: int
):
    monkeypatch.setattr(_block_size, "CHANGED_BYTES", {jax.default_backend(): limit})
    calls = Calls()
    solstice.Trainer([calls]).fit(experiment, [np.float32(1)] * 4)
    assert calls.steps == [4]


def test_a_callback_that_can_stop_costs_no_second_state_where_calls_have_one_step(
    monkeypatch: pytest.MonkeyPatch,
):
    class Stops(solstice.Callback):
        def on_step_end(self, record: solstice.Record) -> None:
            if record.step == 3:
                raise solstice.Stop("enough")

    monkeypatch.setattr(_block_size, "CHANGED_BYTES", {jax.default_backend(): 3999})
    stopping, plain = solstice.Trainer([Stops()]), solstice.Trainer()
    start = Head(SMALL + 1, LARGE)
    stopped_at_3 = stopping.fit(start, [np.float32(1)] * 8)
    assert "donated: each call reuses" in stopping.explain()
    np.testing.assert_array_equal(stopped_at_3.trained, np.full(1000, 4.0))
    alike = plain.fit(start, [np.float32(1)] * 8, max_steps=3)
    np.testing.assert_array_equal(stopped_at_3.trained, alike.trained)
