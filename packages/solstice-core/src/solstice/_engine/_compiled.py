"""CompiledStepper: one compiled call runs a block of steps and merges their metrics.

Nothing is read back to the host.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice import _tree
from solstice._batch import arrays_of
from solstice._compiles import Kind, kinds_of
from solstice._digests import Digests
from solstice._engine._block import Block
from solstice._engine._hash import hashed
from solstice._engine._interrupts import interrupts_held
from solstice._engine._outputs import Hashes, StackedOutputs, StateArrays, is_due, names_of
from solstice._engine._ownership import Ownership
from solstice._engine._pack import types_of, unpack
from solstice._engine._placement import SINGLE_DEVICE, Placement
from solstice._engine._protocols import Stepper
from solstice._engine._resident import Rows
from solstice._engine._sharding import Spread
from solstice._engine._steps import Carry, Steps, calls, compiled, merge_grown
from solstice._engine._totals import Reading, merging_of, total_from
from solstice._engine._trace import Traced, prepare
from solstice._experiment import Experiment
from solstice._metrics import Metrics
from solstice._types import Batch, Outputs, PyTree


class CompiledStepper:
    """A `Stepper` for steps that JAX can trace.

    Args:
        experiment: the initial Experiment. It is not changed, and stays valid without `given`.
        method: "train_step", "eval_step" or "predict_step".
        batch: a batch of the usual kind; the step is traced with it before anything runs.
        steps_per_call: the most steps in a call; chosen by rule if None.
        keeps_outputs: whether `run` returns the outputs of each step.
        can_rewind: whether `rewind` may be called. If not, train steps donate their input arrays.
        epoch_steps: for data on the device, the steps in an epoch; None for data from the host.
        placement: the device of the state.
        readers: the number of accumulators of metrics. Each merges step by step, so its bits do not
            depend on when another is read.
        given: the caller's Experiment, if the run gives it up. Its arrays are then destroyed.
        hashes_every: as in `Steps`.

    Attributes:
        kind, name, sizes, ownership: as in `Stepper`.
        traced: the traced step.

    Raises:
        DataError: the step cannot unpack the batch.
        ExperimentError: the step does not return a pair, or returns an Experiment of another
            structure.
    """

    def __init__(
        self,
        experiment: Experiment,
        method: str,
        batch: Batch,
        *,
        steps_per_call: int | None = None,
        keeps_outputs: bool = False,
        can_rewind: bool = False,
        readers: int = 1,
        epoch_steps: int | None = None,
        placement: Placement = SINGLE_DEVICE,
        given: Experiment | None = None,
        hashes_every: int | None = None,
    ) -> None:
        batch = arrays_of(batch)
        plan, arrays = prepare(experiment, method, batch)
        split = placement.shardings(plan)
        spread = Spread(placement.parts, split)
        arrays = placement.put_state(arrays, split)
        self.kind = type(experiment)
        self.traced = Traced(plan, _tree.structure(batch), types_of(batch))
        merging = merging_of(self.traced)
        merging = replace(merging, empty=placement.put_whole(merging.empty))
        if epoch_steps is None:
            self.sizes = self.traced.sizes(steps_per_call, spread)
        else:
            stacks = keeps_outputs or merging.sums is None  # metrics that grow are outputs too
            self.sizes = self.traced.sizes_on_device(
                epoch_steps, steps_per_call, spread, keeps_outputs=stacks
            )
        # Evaluation must not destroy the training state, and `rewind` needs the old one, except
        # in blocks of one step, which it always keeps.
        may_rewind = can_rewind and self.sizes.steps_per_block > 1
        donates = method == "train_step" and not may_rewind
        self._steps = Steps(
            plan.program,
            merging.sums,
            loops=self.sizes.loops,
            keeps_outputs=keeps_outputs,
            donates=donates,
            fixed=() if donates else plan.unchanged,
            placement=placement,
            split=split,
            hashes_every=hashes_every,
        )
        self._call = compiled(self._steps)
        self._merging = merging
        self._carry = Carry(arrays, [merging.empty] * readers, np.ones(readers, bool))
        self.ownership = Ownership(arrays, given)
        self._before = self._carry
        self._done = 0
        self._owner: CompiledStepper | None = None

    @property
    def name(self) -> str:
        """The name of the step, such as "Classifier.train_step"."""
        return f"{self.kind.__name__}.{self._steps.program.name}"

    @property
    def outputs(self) -> Outputs:
        """The shapes of the step's outputs."""
        return unpack(self.traced.plan.outputs)

    @property
    def state_bytes(self) -> int:
        """The size of the state's arrays in bytes."""
        return sum(x.nbytes for x in self._carry.arrays)

    @property
    def notes(self) -> list[str]:
        """Lines on the devices, for `Trainer.explain`."""
        return self._steps.placement.notes(self.traced.plan, self._steps.split)

    @property
    def advice(self) -> str:
        """A sentence on a sharding that does not do what it is for; else ""."""
        return self._steps.placement.advice(self.traced.plan, self._steps.split)

    @property
    def works_in_place(self) -> bool:
        """Whether a call reuses the memory of its input arrays."""
        return self._steps.donates

    @property
    def needs_batches(self) -> bool:
        """False: the stacked arrays are enough."""
        return False

    @property
    def is_lost(self) -> bool:
        """Whether a call has failed and the arrays cannot be read."""
        try:  # calls are asynchronous, so a failure may show only here
            jax.block_until_ready(self._carry.arrays)
        except Exception:  # any error of the device
            return True
        return False

    def share_experiment(self) -> Experiment:
        """The Experiment after the last step. It stays valid."""
        self.ownership.share()
        if self._owner is not None:
            self._owner.ownership.share()
        return self._steps.program.merge(self._carry.arrays)

    def take_state(self, experiment: Experiment) -> bool:
        """Continues with another Experiment; the metrics so far stay.

        False, and nothing has changed, if its step is another program.
        """
        steps = self._steps
        arrays = steps.program.arrays_like(experiment, self.traced.plan.types)
        if arrays is None:
            return False
        arrays = steps.placement.put_state(arrays, steps.split)
        self._carry = self._before = replace(self._carry, arrays=arrays)
        self.ownership.restart()
        return True

    def continue_from(self, other: Stepper) -> None:
        """Takes the metrics so far of the stepper before it, if they have the same shapes."""
        if isinstance(other, CompiledStepper) and self.traced.has_outputs_of(other.traced):
            totals, is_empty = other._carry.totals, other._carry.is_empty
            self._carry = replace(self._carry, totals=totals, is_empty=is_empty)
        self.ownership.restart()

    def borrow_state(self, owner: Stepper, batch: Batch) -> bool:
        """Starts again with the newest state of its owner, without a copy; `return_state` ends it.

        False, and nothing has changed, if this step does not take that state or that batch.
        """
        if not isinstance(owner, CompiledStepper) or not self._takes(owner, arrays_of(batch)):
            return False
        self._owner = owner
        self._start(owner._carry.arrays)
        return True

    def return_state(self) -> None:
        """Drops the state that was borrowed, and what steps have made of it."""
        if self._owner is not None:
            self._owner = None
            self._start([])

    def _start(self, arrays: list[Array]) -> None:
        readers = len(self._carry.totals)
        self._carry = Carry(arrays, [self._merging.empty] * readers, np.ones(readers, bool))
        self._before = self._carry

    def _takes(self, owner: "CompiledStepper", batch: Batch) -> bool:
        """Whether the state of another stepper, and batches like this one, fit the program."""
        theirs, ours = owner.traced.plan, self.traced.plan
        if not theirs.program.has_state_of(ours.program) or theirs.types != ours.types:
            return False
        return self.traced.is_of(batch)

    def signature(self, block: Block) -> tuple[str, dict[str, Kind]]:
        """A name, and by path the inputs on which the compiled program of a block depends."""
        experiment = self._steps.program.merge(self.traced.plan.types)
        callbacks = {
            "steps in a call": self._steps.loops,
            "callbacks that read metrics": len(self._carry.totals),
            "callbacks that read outputs": self._steps.keeps_outputs,
            "callbacks that may stop the run": not self._steps.donates,
            "data on the device": block.on_device,
            "callbacks that read digests": self._steps.hashes_every is not None,
        }
        name = f"{self.kind.__module__}.{self.kind.__qualname__}.{self.name}"
        return name, {
            **kinds_of(experiment),
            **kinds_of(block.arrays(0), "batch"),
            **{path: Kind(str(value)) for path, value in callbacks.items()},
        }

    def warm_up(self, block: Block) -> None:
        """Compiles the program of a block without running a step, if calls have a step count."""
        if self._steps.loops:
            if self._steps.donates:
                self.ownership.unshare(self._carry.arrays)
            before = self._carry
            token, after, _ = self._call(before, block.placed, 0, 0)
            jax.block_until_ready(token)
            # The totals of no steps are not those of a reader that has some.
            self._carry = replace(after, totals=before.totals, is_empty=before.is_empty)

    def run(self, block: Block, done: int = 0) -> StackedOutputs:
        """Runs a block of steps; returns their outputs, on the device."""
        self.settle()
        self._done = done
        return self._run(block, len(block))

    def settle(self) -> None:
        """Ends the time in which `rewind` is possible, and frees what only that needed."""
        # If calls do not donate, this is a second copy of the state until the next block.
        self._before = self._carry
        self.ownership.settle(self._carry.arrays)

    def rewind(self, block: Block, count: int) -> None:
        """Restores the state after the `count`-th step of the last block.

        It runs these steps again from the state before the block. The bits are the same, because
        the shorter call is the same program.
        """
        self._carry = self._before
        self._run(block, count)

    def take_metrics(self, reader: int = 0) -> Metrics | None:
        """The merged metrics since this reader last took them; None if there are none."""
        total = self.totals()[reader]
        self._clear(reader)
        return total

    def read_metrics(self, reader: int = 0) -> Reading | None:
        """Like `take_metrics`, for later; None if these metrics do not wait to be computed."""
        if not self._merging.can_wait or self._carry.is_empty[reader]:
            return None
        reading = Reading(self._carry.totals[reader])
        self._clear(reader)
        return reading

    def _clear(self, reader: int) -> None:
        # A new carry with new lists, because `rewind` may restore the old one.
        totals, is_empty = list(self._carry.totals), self._carry.is_empty.copy()
        totals[reader], is_empty[reader] = self._merging.empty, True
        self._carry = replace(self._carry, totals=totals, is_empty=is_empty)

    def totals(self) -> list[Metrics | None]:
        """The merged metrics of each reader since it last took them, without taking them."""
        pairs = zip(self._carry.is_empty, self._carry.totals, strict=True)
        return [None if is_empty else unpack(total) for is_empty, total in pairs]

    def restore(
        self, experiment: Experiment, totals: Sequence[Mapping[str, ArrayLike] | None]
    ) -> None:
        """Restores a saved Experiment, and the metrics of each reader from arrays by path."""
        placement = self._steps.placement
        merged = [
            self._merging.empty
            if saved is None
            else placement.put_whole(total_from(saved, self.traced, self._steps.grows))
            for saved in totals
        ]
        arrays = placement.put_state(self._steps.program.split(experiment), self._steps.split)
        self._carry = Carry(arrays, merged, np.array([saved is None for saved in totals]))
        self.ownership.restart()

    def digests(self, step: int) -> Digests:
        """The digests of the state, which is that after `step` steps."""
        found = hashed(self._carry.arrays, self._steps.placement)
        return self._state.digests(step, found)

    @cached_property
    def _state(self) -> StateArrays:
        return StateArrays.of(self._steps.program.array_names(), self.traced.plan.types)

    def _hashes(self, block: Block, calls: list[Any], count: int) -> Hashes | None:
        every = self._steps.hashes_every
        if every is None:
            return None
        placed = block.placed
        batch = _tree.structure(placed.arrays if isinstance(placed, Rows) else placed)
        names = names_of(batch, _tree.structure(self.traced.plan.outputs), calls[0][1].shape[1])
        last = None
        if is_due(self._done + count, every):
            last = hashed(self._carry.arrays, self._steps.placement)
        return Hashes(calls, last, self._done, count, every, names, self._state)

    def _run(self, block: Block, count: int) -> StackedOutputs:
        if self._steps.donates:
            self.ownership.unshare(self._carry.arrays)
        ends: list[Array] = []
        kept: list[PyTree] = []
        hashed_steps: list[PyTree] = []
        # Before the calls: if one fails, those before it still read the buffer.
        block.slot.mark_in_use(ends, count, time.monotonic())
        with interrupts_held():  # because the old arrays are gone before the new ones are assigned
            for rows, steps in calls(self._steps, block.placed, count):
                before, done = self._carry, self._done + len(ends)
                token, self._carry, results = self._call(before, rows, steps, done)
                outputs, grown, hashes = results
                ends.append(token)
                kept.append(outputs)
                hashed_steps.append(hashes)
                self._carry = merge_grown(self._steps, before, self._carry, grown, steps)
        return StackedOutputs(kept, count, self._hashes(block, hashed_steps, count))
