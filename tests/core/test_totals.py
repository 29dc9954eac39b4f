"""Totals within a compiled call: a sum begins at zero, all else with the first step's own."""

from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice._engine import CompiledStepper


class Totals(solstice.Metrics):
    """Two numbers of a batch, merged as `merge` of each class below has it."""

    one: Any
    other: Any

    def compute(self) -> dict[str, Any]:
        return {"one": self.one, "other": self.other}


class Sums(Totals):
    def merge(self, other: "Sums", /) -> "Sums":
        return Sums(self.one + other.one, other.other + self.other)  # in either order


class Highest(Totals):
    """A sum, and the highest: of numbers below zero, it is not what zero would make of it."""

    def merge(self, other: "Highest", /) -> "Highest":
        return Highest(self.one + other.one, jnp.maximum(self.other, other.other))


class BlockOutputs(Totals):
    """The first of all, and the last."""

    def merge(self, other: "BlockOutputs", /) -> "BlockOutputs":
        return BlockOutputs(self.one, other.other)


class Crossed(Totals):
    """Nothing but additions, and one of them of what stands in another place."""

    def merge(self, other: "Crossed", /) -> "Crossed":
        return Crossed(self.one + other.one, self.other + other.one)


class Shifted(Totals):
    """A sum with one more for each merge: of no steps there is nothing to add it to."""

    def merge(self, other: "Shifted", /) -> "Shifted":
        return Shifted(self.one + other.one + 1, self.other * other.other)


KINDS: list[Any] = [Sums, Highest, BlockOutputs, Crossed, Shifted]


class Reports(solstice.Experiment):
    """A step that does nothing but report two whole numbers of its batch."""

    kind: Any
    steps: Any

    def train_step(self, batch: Any) -> Any:
        return solstice.replace(self, steps=self.steps + 1), self.kind(batch[0], batch[1])

    def eval_step(self, batch: Any) -> Any:
        return self, self.kind(batch[0], batch[1])


def of_all(kind: Any, batches: list[Any]) -> dict[str, Any]:
    return reduce(lambda total, one: total.merge(one), [kind(*b) for b in batches]).compute()


@pytest.mark.parametrize("kind", KINDS)
@given(
    numbers=st.lists(st.tuples(*[st.integers(-8, -1)] * 2), min_size=1, max_size=9),
    every=st.integers(1, 4),
)
@settings(max_examples=15, deadline=None)
def test_a_total_is_the_merge_of_its_steps_wherever_it_is_taken(kind, numbers, every):
    """Of two epochs, of parts of them that a callback takes, and of an evaluation."""
    batches = [np.array(pair, np.float32) for pair in numbers]
    taken: list[Any] = []
    epochs: list[Any] = []

    class Takes(solstice.Callback):
        needs = ("metrics",)

        def __init__(self) -> None:
            self.every = every

        def on_step_end(self, record: solstice.Record) -> None:
            taken.append((record.step, record.metrics))

        def on_epoch_end(self, record: solstice.Record) -> None:
            epochs.append(record.metrics)

    trainer = solstice.Trainer([Takes()])
    trained = trainer.fit(Reports(kind, jnp.zeros(())), batches, num_epochs=2)

    whole = of_all(kind, batches)
    assert epochs == [whole, whole]
    assert solstice.Trainer().validate(trained, batches) == whole

    begin = 0
    for step, metrics in taken:
        assert metrics == of_all(kind, (batches + batches)[begin:step])
        begin = step
    assert begin == 2 * len(batches) // every * every


@pytest.mark.parametrize(
    ("kind", "sums"),
    [
        (Sums, (True, True)),
        (Highest, (True, False)),
        (BlockOutputs, (False, False)),
        (Crossed, (True, False)),
        (Shifted, (False, False)),
    ],
)
def test_what_is_a_sum_is_read_from_the_merge(kind, sums):
    experiment = Reports(kind, jnp.zeros(()))
    stepper = CompiledStepper(experiment, "train_step", np.ones(2, np.float32))
    assert stepper._steps.sums == sums  # pyright: ignore[reportPrivateUsage]
