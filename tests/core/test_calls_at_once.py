"""Calls of one step each that are made one after the other: as if each were made alone."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice._compiles import compiled_so_far
from solstice._engine import BlockSize, CompiledStepper, Feeder, StagingBuffers

pytestmark = pytest.mark.bits


class Means(solstice.Metrics):
    """The mean of each image: metrics that grow."""

    means: Any

    def merge(self, other: "Means", /) -> "Means":
        return Means(jnp.concatenate([self.means, other.means]))

    def compute(self) -> dict[str, Any]:
        return {"means": self.means}


class Convolves(solstice.Experiment):
    """A step with a convolution, which runs one a call on the CPU."""

    kernel: Any
    grows: bool = False

    def train_step(self, batch: Any) -> Any:
        def loss(kernel: Any) -> Any:
            return jnp.mean((jax.lax.conv(batch, kernel, (1, 1), "VALID") - 1) ** 2)

        value, grad = jax.value_and_grad(loss)(self.kernel)
        outputs = Means(batch.mean((1, 2, 3))) if self.grows else {"loss": value}
        return solstice.replace(self, kernel=self.kernel - 0.1 * grad), outputs

    def eval_step(self, batch: Any) -> Any:
        return self, {"sum": jax.lax.conv(batch, self.kernel, (1, 1), "VALID").sum()}

    def predict_step(self, batch: Any) -> Any:
        return jax.lax.conv(batch, self.kernel, (1, 1), "VALID").sum((1, 2, 3))


class Reads(solstice.Callback):
    """Keeps what it is given."""

    needs = ("outputs", "batch")

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.batches: list[str] = []

    def on_step_end(self, record: solstice.Record) -> None:
        self.losses.append(float(record.outputs["loss"]))
        self.batches.append(hashlib.sha256(record.batch.tobytes()).hexdigest())


class Looks(solstice.Callback):
    needs = ("experiment",)

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[bytes] = []

    def on_step_end(self, record: solstice.Record) -> None:
        self.seen.append(np.asarray(record.experiment.kernel).tobytes())


class Stops(solstice.Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, record: solstice.Record) -> None:
        if record.step == self.at:
            raise solstice.Stop("enough")


class Calls(solstice.Callback):
    every = None
    metrics: Any

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_epoch_end(self, record: solstice.Record) -> None:
        self.metrics = record.metrics

    def on_call_end(self, record: solstice.Record) -> None:
        self.steps.append(record.step - sum(self.steps))


def images(sizes: list[int], width: int = 4) -> list[np.ndarray]:
    """Images in batches of so many; only with a width of 4 is each batch of a block aligned."""
    rng = np.random.default_rng(len(sizes))
    return [rng.normal(size=(size, 1, 4, width)).astype(np.float32) for size in sizes]


def start(**fields: Any) -> Convolves:
    return Convolves(jnp.full((1, 1, 2, 2), 0.1), **fields)


def bits(exp: Any) -> bytes:
    return np.asarray(exp.kernel).tobytes()


SIZES = st.lists(st.sampled_from([3, 3, 3, 3, 2]), min_size=1, max_size=25)


@settings(deadline=None)
@given(
    sizes=SIZES,
    width=st.sampled_from([4, 3]),
    epochs=st.integers(1, 2),
    every=st.integers(1, 9),
    stop=st.none() | st.integers(1, 30),
)
def test_what_is_trained_seen_and_measured_is_as_one_call_at_a_time(
    sizes: list[int], width: int, epochs: int, every: int, stop: int | None
):
    def run(looks: bool, **options: Any) -> Any:
        reads, seen = Reads(), Looks(every)
        callbacks = [reads, *([seen] if looks else []), *([Stops(stop)] if stop else [])]
        trainer = solstice.Trainer(callbacks, **options)
        exp = trainer.fit(start(), images(sizes, width), num_epochs=epochs)
        losses = trainer.history.series("train/loss")[1]
        return bits(exp), reads.losses, reads.batches, losses, seen.seen

    alone = run(looks=True, steps_per_call=1)
    assert run(looks=True) == alone
    assert run(looks=False)[:-1] == alone[:-1]


def test_eight_calls_are_made_at_once_and_one_where_the_user_says_so():
    calls = Calls()
    solstice.Trainer([calls]).fit(start(), images([3] * 40))
    assert max(calls.steps) == 8
    assert sum(calls.steps) == 40
    given = Calls()
    solstice.Trainer([given], steps_per_call=1).fit(start(), images([3] * 5))
    assert given.steps == [1] * 5


def test_how_long_they_took_is_divided_by_all_of_them():
    learned: list[int] = []

    class Learns(BlockSize):
        def learn(self, steps: int, seconds: float, *, was_awaited: bool) -> None:
            learned.append(steps)

    data = images([3] * 27)
    stepper = CompiledStepper(start(), "train_step", data[0])
    feeder = Feeder(iter(data), StagingBuffers(Learns(8, 8)), lambda batch: None)
    while (block := feeder.take(8)) is not None:
        stepper.run(block)
    assert learned == [8, 8]  # of the calls that read the two slots before they were filled again


def test_a_program_that_is_called_many_times_at_once_is_compiled_once():
    stepper = CompiledStepper(start(), "train_step", images([5])[0])
    feeder = Feeder(iter(images([5] * 20)), StagingBuffers(BlockSize(8)), lambda batch: None)
    programs: list[int] = []
    while (block := feeder.take(8 if programs else 1)) is not None:
        before, _ = compiled_so_far()
        stepper.run(block)
        programs.append(compiled_so_far()[0] - before)
    assert programs[0] >= 1
    assert programs[1:] == [0, 0, 0]


@settings(deadline=None, max_examples=20)
@given(sizes=SIZES)
def test_predictions_and_metrics_of_evaluation(sizes: list[int]):
    exp, data = start(), images(sizes)
    predicted = list(solstice.Trainer().predict(exp, data))
    assert len(predicted) == len(sizes)
    for one, batch in zip(predicted, data, strict=True):
        np.testing.assert_allclose(one, exp.predict_step(batch), rtol=1e-5)
    sums = [exp.eval_step(batch)[1]["sum"] for batch in data]
    (value,) = solstice.Trainer().validate(exp, data).values()
    assert value == pytest.approx(np.average(sums, weights=sizes), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"steps_per_call": 1}])
def test_metrics_that_grow(options: dict[str, Any]):
    data = images([3] * 11)
    calls = Calls()
    solstice.Trainer([calls], **options).fit(start(grows=True), data)
    means = np.concatenate([batch.mean((1, 2, 3)) for batch in data])
    np.testing.assert_allclose(calls.metrics["means"], means, rtol=1e-5, atol=1e-6)
