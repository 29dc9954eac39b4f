"""Stages: a data set, its stepper and its staging buffers, made for the callbacks of a run."""

import math
from collections.abc import Callable, Generator, Hashable, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np

from solstice import _tree
from solstice._batch import arrays_of, own
from solstice._callback import Callback
from solstice._console import say_once, warn
from solstice._engine import (
    Block,
    BlockSize,
    BuffersByKind,
    EpochOfRows,
    Feeder,
    Placement,
    ResidentBuffers,
    ResidentFeeder,
    StagingBuffers,
    Stepper,
    make_stepper,
    placement_of,
    prefetched,
    waiting,
)
from solstice._errors import DataError
from solstice._experiment import Experiment, steps_epochs
from solstice._left_out import LeftOut
from solstice._loop._cadence import watchers_within
from solstice._loop._computation import Computation
from solstice._loop._hooks import Hooks
from solstice._loop._outputs import advice
from solstice._loop._peers import check_data, check_run, check_step, peers_of_this_process
from solstice._loop._stage_options import StageOptions
from solstice._metrics import without_metrics
from solstice._record import Times
from solstice._sources import Source
from solstice._types import Batch, Outputs
from solstice.data import Batches


@dataclass(frozen=True)
class Stage:
    """A data set, and what runs steps over it.

    Attributes:
        source: the data set.
        stepper: runs the steps.
        buffers: the buffers of its blocks.
        prefetch: the number of batches that a thread reads ahead.
        arrays: all examples on the device; None if batches are fed from the host.
        steps_epochs: whether the Experiment does something after each epoch.
    """

    source: Source
    stepper: Stepper
    buffers: StagingBuffers | ResidentBuffers
    prefetch: int
    arrays: Batch = None
    steps_epochs: bool = False

    @contextmanager
    def feeder(
        self,
        epoch: int,
        times: Times,
        check: Callable[[Batch], None] | None,
        stacked_check: Callable[[Batch], None] | None,
        keeps_batches: bool,
    ) -> Generator[Feeder | ResidentFeeder, None, None]:
        """The blocks of an epoch; the end of the context ends the thread of `prefetch`.

        Args:
            epoch: the number of the epoch.
            times: the times of the run.
            check: called with each batch before its use; None for no check.
            stacked_check: called with stacked batches in place of `check`, which is then called for
                the first batch of each kind; None for none.
            keeps_batches: whether callbacks read batches.
        """
        if isinstance(self.buffers, ResidentBuffers):
            yield ResidentFeeder(self._rows(epoch), self.buffers, check, stacked_check, times)
            return
        batches = self.source.epoch(epoch)
        keep = self._keep if keeps_batches or self.stepper.needs_batches else None
        read = prefetched(batches, self.prefetch) if self.prefetch else batches
        try:
            yield Feeder(read, self.buffers, check, stacked_check, times, keep=keep)
        finally:
            read.close()

    def _keep(self, batch: Batch) -> Batch:
        """A copy of a batch, because the data set may overwrite it when the next one is read."""
        return batch if self.prefetch else own(batch)  # prefetched ones are copies

    def _rows(self, epoch: int) -> EpochOfRows:
        data, start = self.source.rows(epoch)
        return EpochOfRows(
            arrays=self.arrays,
            order=data.order,
            num_examples=data.num_examples,
            batch_size=data.batch_size,
            start=start,
            stop=cast("int", self.source.length),
            examples=data.arrays,
            read=data.__getitem__,
        )


class Stages:
    """Makes the stages of one run, and keeps the buffers and the steps of all.

    Args:
        options: the options.
        memory: staging buffers of earlier runs, by step. `close` returns them.

    Attributes:
        computation: the steps of the stages so far.
        peers: the other processes of the run; None if there are none.
    """

    def __init__(self, options: StageOptions, memory: dict[str, BuffersByKind]) -> None:
        self.computation = Computation()
        self.peers = None if options.layout is None else peers_of_this_process()
        self._options = options
        self._compiled: set[Hashable] = set()
        self._memory = memory
        self._buffers: dict[str, StagingBuffers] = {}
        self._resident: dict[str, ResidentBuffers] = {}
        self._placement: Placement | None = None
        self._left_out = LeftOut()
        self._validation: Stage | None = None

    def stage(
        self,
        source: Source,
        experiment: Experiment,
        method: str,
        hooks: Hooks,
        *,
        epoch: int = 0,
        steps_per_call: int | None = None,
        batch: Batch = None,
    ) -> Stage:
        """The stage of a data set for an Experiment and one of its steps.

        Args:
            source: the data set.
            experiment: the Experiment before the first step.
            method: "train_step", "eval_step" or "predict_step".
            hooks: the callbacks of the pass, whose needs decide what the stepper keeps.
            epoch: the epoch whose first batch the step is traced with.
            steps_per_call: the steps per call of a saved run, in place of the rule.
            batch: the shapes of a batch, in place of that first batch.
        """
        placement = self._placement = self._placement or self._place(experiment)
        if source.is_share:
            placement = placement.of_shares()
        is_new = batch is None
        batch = self._first(source, epoch, placement) if is_new else batch
        data, callbacks = _resident(source, placement), hooks.listeners
        stepper = make_stepper(
            experiment,
            method,
            batch,
            self._look,
            steps_per_call=self._options.steps_per_call or steps_per_call,
            keeps_outputs=method == "predict_step" or any("outputs" in c.needs for c in callbacks),
            can_rewind=bool(watchers_within(callbacks)),
            readers=hooks.num_readers,
            epoch_steps=None if data is None else source.length,
            placement=placement,
            given=self._options.given if method == "train_step" else None,
            hashes_every=hooks.hashes_every if method == "train_step" else None,
        )
        if method == "train_step":
            self._name_override(stepper)
            for advised in (stepper.advice, placement.undivided(batch)):
                if advised and is_new:
                    warn(advised, stacklevel=6)
        self.computation.add_step(method, stepper)
        if self.peers is not None:
            if is_new:
                check_data(self.peers, source, epoch)
            check_step(self.peers, experiment, stepper)
        steps = method == "train_step" and steps_epochs(experiment)
        if data is None or stepper.needs_batches:
            buffers, prefetch = self._buffers_of(method, stepper, placement), self._options.prefetch
            return Stage(source, stepper, buffers, prefetch, steps_epochs=steps)
        arrays, rows = data.place(placement.device), self._resident_of(method, stepper, placement)
        return Stage(source, stepper, rows, 0, arrays, steps)

    def follow(self, stage: Stage, experiment: Experiment, hooks: Hooks) -> Stage:
        """The stage of the same data for an Experiment of other shapes. It keeps the metrics so far
        of callbacks if these have the old shapes.

        The validation is traced again too, so that a checkpoint describes steps of one Experiment.
        """
        self._compiled.clear()  # because these programs are new
        before, val = stage.stepper, self._validation
        batch = before.traced.batch
        stage = self.stage(stage.source, experiment, "train_step", hooks, batch=batch)
        stage.stepper.continue_from(before)
        self.computation.remove_step("eval_step")  # until the validation is traced again
        if val is not None:
            batch, nested = val.stepper.traced.batch, hooks.nested()
            val = self.stage(val.source, experiment, "eval_step", nested, batch=batch)
            # It must not hold the state, whose arrays the next call would then copy.
            self._validation = val if val.stepper.borrow_state(stage.stepper, batch) else None
            val.stepper.return_state()
        return stage

    def check_run(self, what: str, callbacks: Iterable[Callback]) -> None:
        """Raises a PeerMismatch if another process starts a run that is not this one."""
        if self.peers is not None:
            names = [f"{type(c).__name__}(every={c.every})" for c in callbacks]
            check_run(self.peers, f"{what} with the callbacks {', '.join(names) or 'none'}")

    @property
    def is_lead(self) -> bool:
        """Whether this process shows and logs."""
        return self.peers is None or self.peers.is_lead

    @contextmanager
    def notified(self) -> Generator[None, None, None]:
        """Within, an error ends the run of the other processes too."""
        with nullcontext() if self.peers is None else self.peers.notified():
            yield

    def _first(self, source: Source, epoch: int, placement: Placement) -> Batch:
        """A batch of the size that a step gets: a share as often as there are processes."""
        batch, count = first_batch(source, epoch), placement.num_shares
        return batch if count == 1 else _tree.map(partial(_repeated, count), batch)

    def _place(self, experiment: Experiment) -> Placement:
        return (
            placement_of(experiment)
            if self._options.layout is None
            else self._options.layout.placement()
        )

    def validation(self, source: Source, owner: Stepper, hooks: Hooks, epoch: int = 0) -> Stage:
        """The stage of a validation, with the newest state of the training's stepper.

        It is made once for a run, unless the state or the batches change their kind.
        """
        stage, placement = self._validation, cast("Placement", self._placement)
        wrap = self._options.as_evaluated
        if wrap is not None:
            experiment = wrap(owner.share_experiment(), arrays_of(first_batch(source, epoch)))
            return self.stage(source, experiment, "eval_step", hooks, epoch=epoch)
        if source.is_share:
            placement = placement.of_shares()
        batch = self._first(source, epoch, placement)
        if stage is None or not stage.stepper.borrow_state(owner, batch):
            experiment = owner.share_experiment()
            stage = self.stage(source, experiment, "eval_step", hooks, epoch=epoch)
            # A stepper that cannot borrow has the state, which must not be held until the next one.
            self._validation = stage if stage.stepper.borrow_state(owner, batch) else None
        return stage

    def is_new(self, stepper: Stepper, block: Block) -> bool:
        """Whether a stepper gets batches of this kind for the first time."""
        kind = stepper.name, tuple(x.shape for x in _tree.leaves(block.placed))
        is_new = kind not in self._compiled
        self._compiled.add(kind)
        return is_new

    def wait(self) -> None:
        """Waits for all calls, because a step may fail whose results nobody has read."""
        for buffers in (*self._buffers.values(), *self._resident.values()):
            buffers.wait()

    def close(self) -> None:
        """Gives the staging buffers to the next run, which need not allocate them."""
        self._memory.update({method: b.rings for method, b in self._buffers.items()})

    def _name_override(self, stepper: Stepper) -> None:
        """Says if a rule overrides `steps_per_call`."""
        asked, used = self._options.steps_per_call or 1, stepper.sizes.steps_per_call
        if used < asked:
            say_once(f"steps_per_call={asked} runs as {used}: {stepper.sizes.reason}")

    def _buffers_of(self, method: str, stepper: Stepper, placement: Placement) -> StagingBuffers:
        buffers = self._buffers.get(method)
        if buffers is None or buffers.sizes.most != stepper.sizes.steps_per_block:
            # Taken out, because a run within a callback must not fill the same buffers.
            memory = self._memory.pop(method, None)
            buffers = StagingBuffers(self._block_size(stepper), memory, placement)
            self._buffers[method] = buffers
        return buffers

    def _resident_of(self, method: str, stepper: Stepper, placement: Placement) -> ResidentBuffers:
        buffers = self._resident.get(method)
        if buffers is None or buffers.sizes.most != stepper.sizes.steps_per_block:
            buffers = ResidentBuffers(self._block_size(stepper), placement)
            self._resident[method] = buffers
        return buffers

    def _block_size(self, stepper: Stepper) -> BlockSize:
        sizes, is_set = stepper.sizes, self._options.steps_per_call is not None
        if self.peers is not None:  # whose clocks differ
            return BlockSize(sizes.steps_per_block, patience=math.inf)
        # The user's number holds, however long a call takes.
        return BlockSize(sizes.steps_per_block, None if is_set else sizes.first_steps)

    def _look(self, name: str, outputs: Outputs) -> None:
        """Warns of outputs of a step that give no metrics."""
        self._left_out.name(
            without_metrics(outputs), f"{name} returns outputs that give no metrics:", advice
        )


def _resident(source: Source, placement: Placement) -> Batches | None:
    """The data set if its arrays go to the device of the run."""
    data = source.arrays
    if data is None or not data.is_resident:
        return None
    if placement.num_devices == 1 or placement.is_mesh:  # else each runs every step in full
        return data
    if data.on_device is None:  # chosen by rule
        return None
    raise DataError(
        f"{source.name} has on_device=True, and the arrays of the Experiment lie on "
        f"{placement.num_devices} devices. Feed them from the host: {data.from_host()}"
    )


def _repeated(count: int, leaf: Any) -> Any:
    return np.concatenate([leaf] * count) if np.ndim(leaf) > 0 else leaf


def first_batch(source: Source, epoch: int = 0) -> Batch:
    """The first batch of an epoch; the epoch still yields it later."""
    with waiting():
        return source.first(epoch)
