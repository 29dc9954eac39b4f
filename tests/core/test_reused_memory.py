"""A data set may fill the same memory again for each batch, and an iterator change its own state.

What is held for longer than until the next batch is read must be a copy: batches that are read
ahead, the first of an epoch, those of callbacks, of steps that cannot be compiled, and states.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.callbacks import Checkpoint, FlightRecorder, NaNGuard

pytest.importorskip("safetensors")

COUNT, SIZE = 14, 16


def aligned():
    """Memory that JAX on the CPU reads in place."""
    memory = np.zeros(SIZE * 4 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + SIZE * 4].view(np.float32)


MEMORY = aligned()  # of all that reuse it: also of a validation set beside the training set
NAMES = np.array([""] * SIZE, dtype=object)
BATCH = {"x": MEMORY, "name": NAMES}


def size(index):
    return SIZE if index < COUNT - 1 else SIZE // 2


def filled(index):
    MEMORY[:] = index
    NAMES[:] = f"of {index}"
    return MEMORY[: size(index)], NAMES[: size(index)]


def an_array(index):
    return {"x": filled(index)[0], "name": "text"}


def a_view(index):
    return {"x": filled(index)[0][::-1].reshape(-1, 1)[:, 0], "name": "text"}


def a_jax_array(index):
    return {"x": jax.device_put(filled(index)[0]), "name": "text"}


def text(index):
    x, name = filled(index)
    return {"x": x, "name": name}


def a_dict(index):
    BATCH["x"], BATCH["name"] = filled(index)
    return BATCH


class Tensor:
    def __init__(self, memory):
        self.memory = memory

    def __array__(self, dtype=None, copy=None):
        return self.memory


def a_tensor(index):
    return {"x": Tensor(filled(index)[0]), "name": "text"}


KINDS = [an_array, a_view, a_jax_array, text, a_dict, a_tensor]


class Reuses:
    def __init__(self, make, *, bad=None):
        self.make, self.bad = make, bad

    def __iter__(self):
        for index in range(COUNT):
            batch = self.make(index)
            if index == self.bad:
                MEMORY[:] = np.nan
            yield batch


class Sum(solstice.Experiment):
    """A total that depends on the order of the batches."""

    total: jax.Array
    first: jax.Array

    def setup(self, batch):
        return solstice.replace(self, first=batch["x"])

    def check_batch(self, batch):
        x = np.asarray(batch["x"])
        assert (x == x[0]).all()

    def train_step(self, batch):
        total = (1.5 * self.total + batch["x"].sum()) % 1000
        return solstice.replace(self, total=total), {"x": batch["x"].mean()}

    def eval_step(self, batch):
        return self, {"x": batch["x"].mean()}

    def predict_step(self, batch):
        return batch["x"]


class Eager(Sum):
    """It branches on a value, and is not compiled."""

    def train_step(self, batch):
        if batch["x"].sum() >= 0:
            return super().train_step(batch)
        return self, {"x": jnp.zeros(())}

    def predict_step(self, batch):
        return batch["x"] if float(jnp.sum(batch["x"])) >= 0 else None


class Seen(solstice.Callback):
    """Keeps what it is given, and looks at it after the run."""

    needs = ("batch",)

    def __init__(self):
        self.batches, self.examples = [], []

    def on_step_end(self, record):
        self.batches.append((record.mode, record.batch))
        self.examples.append(record.num_examples)


def start(kind=Sum):
    return kind(jnp.zeros(()), jnp.zeros(SIZE))


def expected_total(epochs):
    total = np.float32(0)
    for index in [*range(COUNT)] * epochs:
        total = np.float32((1.5 * total + size(index) * index) % 1000)
    return total


@pytest.mark.filterwarnings("ignore:.*cannot be compiled")
@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("kind", [Sum, Eager])
def test_each_batch_is_trained_validated_predicted_and_kept_as_it_was(make, prefetch, kind):
    seen = Seen()
    trainer = solstice.Trainer([seen], prefetch=prefetch)
    data = Reuses(make)
    exp = trainer.fit(start(kind), data, data, num_epochs=2)
    assert float(exp.total) == expected_total(2)
    assert (np.asarray(exp.first) == 0).all()
    assert [int(np.asarray(b["x"])[0]) for _, b in seen.batches] == [*range(COUNT)] * 4
    assert [len(b["x"]) for _, b in seen.batches[:COUNT]] == [size(i) for i in range(COUNT)]
    names = [np.ravel(b["name"])[0] for _, b in seen.batches[:COUNT]]
    reuses_text = make in (text, a_dict)
    assert names == [f"of {i}" if reuses_text else "text" for i in range(COUNT)]
    assert seen.examples[:COUNT] == list(itertools.accumulate(map(size, range(COUNT))))
    mean = sum(size(i) * i for i in range(COUNT)) / sum(map(size, range(COUNT)))
    assert trainer.history.series("val/x")[1] == pytest.approx([mean] * 2, rel=1e-6)
    outputs = list(trainer.predict(exp, data))
    assert [float(out[0]) for out in outputs] == list(range(COUNT))


@pytest.mark.filterwarnings("ignore:.*cannot be compiled")
@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("kind", [Sum, Eager])
def test_without_a_callback_that_reads_batches(prefetch, kind):
    trainer = solstice.Trainer(prefetch=prefetch)
    assert float(trainer.fit(start(kind), Reuses(a_dict), num_epochs=2).total) == expected_total(2)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_replay_names_the_step_whose_batch_was_bad(tmp_path, prefetch):
    class Unchecked(Sum):
        def check_batch(self, batch):
            pass

    callbacks = [NaNGuard(every=5), FlightRecorder(tmp_path, every=5)]
    trainer = solstice.Trainer(callbacks, prefetch=prefetch, limit_train_batches=10)
    with pytest.raises(FloatingPointError):
        trainer.fit(start(Unchecked), Reuses(an_array, bad=7))
    found = solstice.replay(tmp_path, start(Unchecked), Reuses(an_array, bad=7))
    assert (found.step, found.nonfinite[0]) == (8, "batch['x']")


def test_another_dtype_in_a_batch_that_is_filled_again_is_named():
    batch = {}

    def data():
        for dtype in (np.float32, np.int32):
            batch["x"] = np.zeros(4, dtype)
            yield batch

    with pytest.raises(solstice.DataError, match=r"batch\['x'\]` was float32 .* and is int32"):
        solstice.Trainer().fit(start(), data)


# States


class Live:
    """An iterator whose states are its own, as is usual in Python."""

    def __init__(self, getter, setter):
        self.state = {"index": 0, "of": [0]}
        setattr(self, getter, lambda: self.state)
        setattr(self, setter, lambda state: setattr(self, "state", state))

    def __iter__(self):
        return self

    def __next__(self):
        if self.state["index"] == 40:
            raise StopIteration
        self.state["index"] += 1
        self.state["of"][0] += 1
        return {"x": np.full(4, self.state["of"][0], np.float32), "name": "text"}


class Again:
    def __init__(self, *names):
        self.names = names

    def __iter__(self):
        return Live(*self.names)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("names", [("state_dict", "load_state_dict"), ("get_state", "set_state")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_state_that_goes_on_changing_is_that_of_its_step(
    tmp_path, caplog, prefetch, names, stream
):
    def run(data, folder, **options):
        saves = Checkpoint(tmp_path / folder, every=3)
        trainer = solstice.Trainer([saves], prefetch=prefetch)
        options = {"resume": "last", "strict_resume": True, **options}
        return float(trainer.fit(start(), data, **options).total)

    def data():
        return Live(*names) if stream else Again(*names)

    whole = run(data(), "whole")
    for steps in (1, 10, 21):
        run(data(), "a", max_steps=steps)
    assert run(data(), "a") == whole
    assert caplog.text.count("continues exactly, by the state of its iterator") == 3


def test_a_run_within_a_run_fills_other_memory():
    class Mean(solstice.Experiment):
        def train_step(self, batch):
            return self, None

        def eval_step(self, batch):
            return self, {"mean": batch.mean()}

    class Within(solstice.Callback):
        every = 4
        is_on = False

        def on_step_end(self, record):
            if self.is_on:
                self.is_on = False
                assert self.trainer.validate(Mean(), hundreds) == {"mean": 100}

    hundreds, ones = ([np.full(4, value, np.float32)] * 12 for value in (100, 1))
    within = Within()
    trainer = within.trainer = solstice.Trainer([within], steps_per_call=4)
    trainer.validate(Mean(), ones)  # leaves its memory for the next run
    within.is_on = True
    assert trainer.validate(Mean(), ones) == {"mean": 1}
    assert not within.is_on
