"""One pass over a data set in one mode: an epoch of training, an evaluation, a prediction."""

from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Any

from solstice._cadence import cadence_of
from solstice._callback import Callback, CallbackList, Record, changed
from solstice._eager import EagerKept, EagerStepper
from solstice._experiment import overrides
from solstice._feed import Block, Feeder, Slots
from solstice._metrics import num_examples, to_host
from solstice._step import Kept, Stepper
from solstice._types import Batch


class Pass:
    """Runs blocks of steps, and tells the callbacks of each step.

    Args:
        callbacks: whom to tell.
        stepper: what runs the steps.
        slots: the memory for blocks.
        record: the moment at which the pass begins.

    Attributes:
        record: the moment now.
    """

    def __init__(
        self,
        callbacks: CallbackList,
        stepper: Stepper | EagerStepper,
        slots: Slots,
        record: Record,
    ) -> None:
        self.record = record
        self._callbacks = callbacks
        self._stepper = stepper
        self._slots = slots
        self._cadence = cadence_of(callbacks.callbacks, stepper.steps_per_call)

    def blocks(
        self, batches: Generator[Batch, None, None], max_count: int | None = None
    ) -> Iterator[Kept | EagerKept]:
        """Yields what is kept of each block, until the batches end or a callback asks to stop.

        Args:
            batches: the batches of the pass.
            max_count: the count of steps at which to end, as cadences count them.
        """
        self._callbacks.tell("on_epoch_start", self._with_experiment)
        if self._callbacks.stop is None:
            with closing(batches):  # a thread that reads ahead ends here, however the pass ends
                yield from self._blocks(Feeder(batches, self._slots, self._check()), max_count)

    def _blocks(self, feeder: Feeder, max_count: int | None) -> Iterator[Kept | EagerKept]:
        block = self._take(feeder, self._count, max_count)
        while block is not None:
            self._callbacks.tell_step_start(self.record, self._count + 1, self._giver(block))
            kept = self._stepper.run(block)
            try:  # the next block is filled while the device works on this one
                following = self._take(feeder, self._count + len(block), max_count)
            finally:
                taken = self._tell_steps(block, kept)
            yield taken
            if self._callbacks.stop is not None:
                return
            block = following

    def end(self) -> dict[str, Any]:
        """Ends the pass: its metrics, of which the callbacks are told."""
        metrics = to_host(self._stepper.take_metrics())
        end = partial(self._with_experiment, metrics=dict(metrics))
        self._callbacks.tell("on_epoch_end", end)
        return metrics

    def _take(self, feeder: Feeder, position: int, max_count: int | None) -> Block | None:
        room = self._cadence.room(position)
        if max_count is not None:
            room = min(room, max_count - position)
        return feeder.take(room) if room > 0 else None

    def _tell_steps(self, block: Block, kept: Kept | EagerKept) -> Kept | EagerKept:
        """Tells of each step of a block; goes back to the step at which one asks to stop."""
        start, first = self.record, self._count + 1
        examples = num_examples(block.batches[0])
        for index in range(len(block)):
            stops = self._callbacks.stop is not None  # before the first step, which is taken
            if not stops and not self._callbacks.hears_of_end(first + index):
                continue
            self.record = _advanced(start, index + 1, examples)
            give = self._giver(block, index, kept)
            try:
                self._callbacks.tell_step_end(self.record, first + index, give)
            except BaseException:
                self._go_back_to(block, index + 1)
                raise
            if self._callbacks.stop is not None:
                self._go_back_to(block, index + 1)
                return kept.first(index + 1)
        self.record = _advanced(start, len(block), examples)
        return kept

    def _go_back_to(self, block: Block, count: int) -> None:
        """As if the call had ended with this step, so that none can tell that it did not."""
        if count < len(block):
            self._stepper.rewind(block, count)

    def _giver(self, block: Block, index: int = 0, kept: Kept | EagerKept | None = None) -> Any:
        """What gives a callback each thing that it needs at a step."""

        def give(name: str, callback: Callback) -> Any:
            if name == "experiment":
                return self._stepper.experiment
            if name == "metrics":
                return to_host(self._stepper.take_metrics(self._callbacks.reader(callback)))
            return block.batches[index] if name == "batch" else kept and kept[index]

        return give

    def _check(self) -> Any:
        if self.record.mode == "predict" or not overrides(self._stepper.kind, "check_batch"):
            return _accept
        return self._stepper.experiment.check_batch

    @property
    def _count(self) -> int:
        """What cadences count: training steps of the run, or steps of this evaluation."""
        return self.record.step if self.record.mode == "train" else self.record.epoch_step

    def _with_experiment(self, **given: Any) -> Record:
        return changed(self.record, given={"experiment": self._stepper.experiment, **given})


def _accept(batch: Batch) -> None:
    del batch


def _advanced(record: Record, steps: int, examples: int) -> Record:
    """The record after so many more steps, of so many examples each."""
    return changed(
        record,
        step=record.step + (steps if record.mode == "train" else 0),
        epoch_step=record.epoch_step + steps,
        num_examples=record.num_examples + steps * examples,
    )
