"""A stepper: reading changes nothing, and sharing costs one copy at the next donated call."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import _tree
from solstice._engine import Block, BlockSize, CompiledStepper, Feeder, StagingBuffers

pytestmark = pytest.mark.bits


class Adds(solstice.Experiment):
    total: Any

    def train_step(self, batch: Any) -> Any:
        return solstice.replace(self, total=self.total + batch.sum()), {"sum": batch.sum()}

    def eval_step(self, batch: Any) -> Any:
        return self, {}


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The copies of the state so far."""
    made: list[int] = []
    copy = _tree.copy_in_place

    def counted(arrays: list[jax.Array], indices: Sequence[int]) -> None:
        made.append(len(indices))
        copy(arrays, indices)

    monkeypatch.setattr(_tree, "copy_in_place", counted)
    return made


def blocks(count: int) -> Iterator[Block]:
    ones = iter([np.ones(3, np.float32)] * count)
    feeder = Feeder(ones, StagingBuffers(BlockSize(1)), lambda batch: None)
    while (block := feeder.take(1)) is not None:
        yield block


def test_only_sharing_copies_and_what_was_shared_stays_valid(copies: list[int]):
    stepper = CompiledStepper(Adds(jnp.zeros(())), "train_step", np.ones(3, np.float32))
    shared: list[Adds] = []
    for index, block in enumerate(blocks(4)):
        stepper.run(block)
        for name in dir(CompiledStepper):
            if isinstance(getattr(CompiledStepper, name), property):
                getattr(stepper, name)
        stepper.totals()
        if index == 1:
            shared.append(stepper.share_experiment())
    assert copies == [1, 1]  # before the first call, of the user's arrays, and after sharing
    assert [float(exp.total) for exp in shared] == [6]
    assert float(stepper.share_experiment().total) == 12


def test_a_total_that_does_not_fit_leaves_the_stepper_unchanged():
    stepper = CompiledStepper(Adds(jnp.zeros(())), "train_step", np.ones(3, np.float32))
    with pytest.raises(KeyError):
        stepper.restore(Adds(jnp.ones(())), [{".other": np.zeros(())}])
    assert float(stepper.share_experiment().total) == 0
    assert stepper.totals() == [None]


def test_what_was_restored_stays_valid():
    stepper = CompiledStepper(Adds(jnp.zeros(())), "train_step", np.ones(3, np.float32))
    first, second = blocks(2)
    stepper.run(first)  # so that the copy of the user's arrays is behind it
    restored = Adds(jnp.asarray(5.0))
    stepper.restore(restored, [None])
    stepper.run(second)
    assert (float(restored.total), float(stepper.share_experiment().total)) == (5, 8)
