"""What a run holds, and lets go of."""

import gc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import CLASSES, FEATURES, Sgd, blobs

import solstice
from solstice import _tree

DATA = blobs(4)


def live_bytes() -> int:
    """The bytes of all arrays. In old versions of JAX, two of them may be one piece of memory."""
    return sum({place_of(x): x.nbytes for x in jax.live_arrays()}.values())


def place_of(array: Any) -> Any:
    try:
        return array.unsafe_buffer_pointer()
    except Exception:  # of an array on several devices
        return id(array)


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """What is freed only by the search for cycles is too late for a device with little memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Watches(solstice.Callback):
    """May stop the run at any step, for which what was before a call is kept."""

    def on_step_end(self, record: solstice.Record) -> None:
        pass


@pytest.mark.parametrize(
    "callbacks", [[], [Watches()], [solstice.callbacks.EarlyStopping("val/loss")]]
)
def test_the_arrays_of_a_run_are_freed_when_it_ends(callbacks: list[solstice.Callback]):
    model = eqx.nn.Linear(FEATURES, CLASSES, key=jax.random.key(0))
    trained: Any = solstice.ClassificationExperiment(model, Sgd(0.1), num_classes=3)
    trainer = solstice.Trainer(callbacks)
    alive: list[int] = []
    for _ in range(4):
        trained = trainer.fit(trained, DATA, DATA, num_epochs=2)
        trainer.test(trained, DATA)
        list(trainer.predict(trained, DATA))
        alive.append(len(jax.live_arrays()))
    assert len({*alive[1:]}) == 1  # the first began from arrays that `model` has as well
    assert trainer.experiment is not None


class Doubling(solstice.Experiment):
    parts: list[Any]

    def train_step(self, batch: Any) -> Any:
        return solstice.replace(self, parts=[part * batch for part in self.parts]), {}

    def eval_step(self, batch: Any) -> Any:
        return self, {"sum": sum(part.sum() for part in self.parts) * batch}


class CheckedDoubling(Doubling):
    def check_batch(self, batch: Any) -> None:
        assert len(self.parts) in {1, 10}
        assert np.all(batch < 9)


class StackedDoubling(CheckedDoubling):
    def stacked_check(self) -> Any:
        limit = float(self.parts[0][0]) + 1
        return lambda batches: np.testing.assert_array_less(batches, limit + 1)


@pytest.mark.parametrize("kind", [Doubling, CheckedDoubling, StackedDoubling])
@pytest.mark.parametrize("val", [None, [np.float32(1)]], ids=["alone", "with validation"])
def test_there_are_never_three_states(monkeypatch: pytest.MonkeyPatch, val: Any, kind: Any):
    """The one given, which stays valid, and the newest: a copy of it replaces it part by part."""
    held: list[int] = []
    copies = _tree.copies

    def and_look(tree: Any) -> Any:
        copied = copies(tree)
        held.append(live_bytes())
        return copied

    part = jnp.ones(2**20)
    before = live_bytes() - part.nbytes
    start = kind([part + index for index in range(10)])
    del part
    monkeypatch.setattr(_tree, "copies", and_look)
    trained = solstice.Trainer().fit(start, [np.float32(2)] * 3, val, num_epochs=3)
    assert held
    assert max(held) - before < 2.2 * 10 * 4 * 2**20
    assert [float(part[0]) for part in start.parts] == [*range(1, 11)]
    assert [float(part[0]) for part in trained.parts] == [512.0 * n for n in range(1, 11)]


class Looks(solstice.Callback):
    """Notes the bytes of all arrays at each moment, and reads the state."""

    modes = ("train", "val")
    needs = ("experiment",)
    every = 1

    def __init__(self) -> None:
        self.held: list[int] = []

    def look(self, record: solstice.Record) -> None:
        self.held.append(live_bytes())

    def look_and_read(self, record: solstice.Record) -> None:
        part: Any = record.experiment.parts[0]  # pyright: ignore[reportAttributeAccessIssue]
        assert float(part[0]) > 0
        self.look(record)

    on_epoch_start = on_step_end = on_epoch_end = look_and_read
    on_call_end = look


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("states", [1, 2])
def test_one_large_array_is_in_memory_once_or_twice(tmp_path: Path, states: int, every: int | None):
    """With `donate=True` once; else the caller's too. No callback and no validation adds one."""
    part = jnp.ones(2**25 + 2**21)  # 136 MiB: more than a step may change in a loop
    bytes_of_one, before = part.nbytes, live_bytes() - part.nbytes
    start, looks = Doubling([part]), Looks()
    del part
    monitors = [solstice.callbacks.NormMonitor(), solstice.callbacks.NaNGuard(every=2)]
    saver = solstice.callbacks.Checkpoint(tmp_path, keep=1)
    trainer = solstice.Trainer([looks, *monitors, saver], val_every_n_steps=every)
    data = [np.float32(1.5)] * 2
    trained = trainer.fit(start, data, [np.float32(1)], num_epochs=2, donate=states == 1)
    assert float(trained.parts[0][0]) == 1.5**4
    assert max(looks.held) - before < (states + 0.1) * bytes_of_one
    assert start.parts[0].is_deleted() == (states == 1)


def test_a_check_of_batches_may_read_arrays():
    read: list[tuple[float, float]] = []

    class Reads(Doubling):
        def check_batch(self, batch: Any) -> None:
            read.append((float(self.parts[0]), float(batch)))
            if batch > 3:
                raise ValueError("too large")

    start = Reads([jnp.ones(())])
    batches = [np.float32(2), np.float32(3)]
    solstice.Trainer(steps_per_call=1).fit(start, batches, num_epochs=2)
    assert read == [(1, 2), (1, 3), (6, 2), (6, 3)]  # the arrays at the start of each epoch
    with pytest.raises(ValueError, match="too large") as caught:
        solstice.Trainer().fit(start, [*batches, np.float32(4)])
    assert caught.value.__context__ is None
    assert "after step 2" in caught.value.__notes__[-1]


class Stops(solstice.Callback):
    def on_step_end(self, record: solstice.Record) -> None:
        if record.step == 3:
            raise solstice.Stop("enough")


def broken() -> Iterator[Any]:
    yield np.float32(1)
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("callbacks", "data", "options"),
    [
        ([Stops()], [np.float32(1)] * 4, {}),
        ([], broken, {}),
        ([], broken, {"prefetch": 1}),
        ([], broken, {"steps_per_call": 1}),
        ([], [np.float32(1)] * 3 + [np.float32(9)], {}),
        ([], [np.float32(9)], {}),
    ],
    ids=["stop", "data", "prefetch", "next block", "refused", "first refused"],
)
@pytest.mark.parametrize("kind", [CheckedDoubling, StackedDoubling])
def test_no_exception_keeps_a_run(callbacks: Any, data: Any, options: Any, kind: Any):
    alive: list[int] = []
    for _ in range(3):
        with suppress(OSError, AssertionError):
            solstice.Trainer(callbacks, **options).fit(kind([jnp.ones(1)]), data)
        alive.append(len(jax.live_arrays()))
    assert len({*alive}) == 1, alive
