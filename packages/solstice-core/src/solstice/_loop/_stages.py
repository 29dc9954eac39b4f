"""Stages: a data set, its stepper and its staging buffers, made for the callbacks of a run."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from solstice._console import say
from solstice._engine import (
    BlockSize,
    BuffersByKind,
    StagingBuffers,
    Stepper,
    make_stepper,
    prefetched,
    waiting,
)
from solstice._experiment import Experiment
from solstice._left_out import LeftOut
from solstice._loop._cadence import watchers_within
from solstice._loop._computation import Computation
from solstice._loop._hooks import Hooks
from solstice._loop._outputs import advice
from solstice._metrics import without_metrics
from solstice._sources import Source
from solstice._types import Batch, Outputs


@dataclass(frozen=True)
class Stage:
    """A data set, and what runs steps over it.

    Attributes:
        source: the data set.
        stepper: runs the steps.
        buffers: the staging buffers of its blocks.
        prefetch: the number of batches that a thread reads ahead.
    """

    source: Source
    stepper: Stepper
    buffers: StagingBuffers
    prefetch: int

    @contextmanager
    def batches(self, epoch: int) -> Generator[Generator[Batch, None, None], None, None]:
        """The batches of an epoch; the end of the context ends the thread of `prefetch`."""
        batches = self.source.epoch(epoch)
        read = prefetched(batches, self.prefetch) if self.prefetch else batches
        try:
            yield read
        finally:
            read.close()


class Stages:
    """Makes the stages of one run, and keeps the buffers and the steps of all.

    Args:
        steps_per_call: the user's choice, or None.
        prefetch: the number of batches that a thread reads ahead.
        memory: staging buffers of earlier runs, by step. `close` returns them.

    Attributes:
        computation: the steps of the stages so far.
    """

    def __init__(
        self,
        steps_per_call: int | None,
        prefetch: int,
        memory: dict[str, BuffersByKind],
    ) -> None:
        self.computation = Computation()
        self._steps_per_call = steps_per_call
        self._prefetch = prefetch
        self._memory = memory
        self._buffers: dict[str, StagingBuffers] = {}
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
    ) -> Stage:
        """The stage of a data set for an Experiment and one of its steps.

        Args:
            source: the data set.
            experiment: the Experiment before the first step.
            method: "train_step", "eval_step" or "predict_step".
            hooks: the callbacks of the pass, whose needs decide what the stepper keeps.
            epoch: the epoch whose first batch the step is traced with.
            steps_per_call: the steps per call of a saved run, in place of the rule.
        """
        size = self._steps_per_call or steps_per_call
        stepper = self._stepper(experiment, method, first_batch(source, epoch), hooks, size)
        self._name_override(method, stepper)
        self.computation.add_step(method, stepper)
        return Stage(source, stepper, self._buffers_of(method, stepper), self._prefetch)

    def validation(self, source: Source, owner: Stepper, hooks: Hooks, epoch: int = 0) -> Stage:
        """The stage of a validation, with the newest state of the training's stepper.

        It is made once for a run, unless the state or the batches change their kind.
        """
        stage, batch = self._validation, first_batch(source, epoch)
        if stage is None or not stage.stepper.borrow_state(owner, batch):
            experiment = owner.share_experiment()
            stage = self.stage(source, experiment, "eval_step", hooks, epoch=epoch)
            stage.stepper.borrow_state(owner, batch)
            self._validation = stage
        return stage

    def close(self) -> None:
        """Gives the staging buffers to the next run, which need not allocate them."""
        self._memory.update({method: b.rings for method, b in self._buffers.items()})

    def _name_override(self, method: str, stepper: Stepper) -> None:
        """Says if a rule overrides `steps_per_call`."""
        asked, used = self._steps_per_call or 1, stepper.sizes.steps_per_call
        if method == "train_step" and used < asked:
            say(f"steps_per_call={asked} runs as {used}: {stepper.sizes.reason}")

    def _buffers_of(self, method: str, stepper: Stepper) -> StagingBuffers:
        most, first = stepper.sizes.steps_per_block, stepper.sizes.first_steps
        buffers = self._buffers.get(method)
        if buffers is None or buffers.sizes.most != most:
            # The user's number holds, however long a call takes.
            sizes = BlockSize(most, None if self._steps_per_call else first)
            # Taken out, because a run within a callback must not fill the same buffers.
            buffers = StagingBuffers(sizes, self._memory.pop(method, None))
            self._buffers[method] = buffers
        return buffers

    def _stepper(
        self, experiment: Experiment, method: str, batch: Batch, hooks: Hooks, size: int | None
    ) -> Stepper:
        callbacks = hooks.listeners
        return make_stepper(
            experiment,
            method,
            batch,
            self._look,
            steps_per_call=size,
            keeps_outputs=method == "predict_step" or any("outputs" in c.needs for c in callbacks),
            can_rewind=bool(watchers_within(callbacks)),
            readers=hooks.num_readers,
        )

    def _look(self, name: str, outputs: Outputs) -> None:
        """Warns of outputs of a step that give no metrics."""
        self._left_out.name(
            without_metrics(outputs), f"{name} returns outputs that give no metrics:", advice
        )


def first_batch(source: Source, epoch: int = 0) -> Batch:
    """The first batch of an epoch; the epoch still yields it later."""
    with waiting():
        return source.first(epoch)
