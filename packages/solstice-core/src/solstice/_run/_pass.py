"""Pass: one pass over a data set: an epoch of training, an evaluation, a prediction."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Any

from solstice._callback import Callback
from solstice._engine._compiles import Compilation, compiled_so_far, reasons
from solstice._engine._eager import EagerOutputs, EagerStepper
from solstice._engine._feed import Block, Feeder, StagingBuffers
from solstice._engine._interrupts import Guard, end_if_asked
from solstice._engine._step import BlockOutputs, Stepper
from solstice._engine._times import Times
from solstice._experiment import overrides
from solstice._metrics import Metrics, to_host
from solstice._record import Lazy, Record, Snapshot, changed
from solstice._run._cadence import cadence_of
from solstice._run._callbacks import CallbackList
from solstice._run._validation import Validation
from solstice._types import Batch
from solstice.data._arrays import own


class Pass:
    """Runs blocks of steps, and calls the callbacks for each step.

    Args:
        callbacks: the callbacks of the run.
        stepper: runs the steps.
        slots: the staging buffers for blocks.
        record: the first moment of the pass.
        snapshot: makes a snapshot of the run, given this pass and whether it has ended.
        guard: the effect of signals on the run.
        owns_batches: whether the batches are copies, which the data set does not overwrite.

    Attributes:
        record: the current moment.
    """

    def __init__(
        self,
        callbacks: CallbackList,
        stepper: Stepper | EagerStepper,
        slots: StagingBuffers,
        record: Record,
        snapshot: Callable[["Pass", bool], Snapshot],
        guard: Guard,
        *,
        owns_batches: bool = False,
    ) -> None:
        self.record = record
        self._callbacks = callbacks
        self._stepper = stepper
        self._slots = slots
        self._cadence = cadence_of(callbacks.callbacks, stepper.steps_per_block)
        self._snapshot = snapshot
        # Only a training pass can be saved; a validation is cut short.
        self._guard = guard if record.mode == "train" else Guard()
        self._has_ended = False
        self._cut: list[Metrics | None] | None = None
        self._last: tuple[Block, int] | None = None
        self._following: Block | None = None
        self._owns_batches = owns_batches
        self._times = record.times if record.mode == "train" else Times()
        self._compilation: Compilation | None = None
        self._measured: tuple[Any, dict[str, Any]] = (None, {})

    def blocks(
        self, batches: Generator[Batch, None, None], max_count: int | None = None
    ) -> Iterator[BlockOutputs | EagerOutputs]:
        """Yields the outputs of each block, until the batches end or a callback asks to stop.

        Args:
            batches: the batches of the pass.
            max_count: the number of steps at which to end, counted as for cadences.
        """
        self._callbacks.notify("on_epoch_start", self._with_experiment)
        if self._callbacks.stop is None:
            with closing(batches):  # also ends the thread of `prefetch=`
                feeder = Feeder(batches, self._slots, self._check(), self._times, keep=self._keep())
                yield from self._blocks(feeder, max_count)
        enough = max_count is not None and self._count >= max_count
        if enough and self.record.epoch_step != self.record.steps_per_epoch:
            self._cut = self._stepper.totals()  # now, because `end` takes the metrics

    def _blocks(
        self, feeder: Feeder, max_count: int | None
    ) -> Iterator[BlockOutputs | EagerOutputs]:
        block = self._take(feeder, self._count, max_count)
        while block is not None:
            before = self._point_before(block)
            self._guard.has_begun = True
            self._save_at(None)
            self._callbacks.notify_step_start(self.record, self._count + 1, self._giver(block))
            kept, self._following = self._run(block), None
            try:  # fill the next block while the device works on this one
                self._save_at(self._interrupted)
                following = self._take(feeder, self._count + len(block), max_count)
                self._following = following
            finally:  # also if reading fails, because these steps have been trained
                taken = self._notify_steps(block, kept, before)
                self._save_at(self._interrupted)
            self._notify_compilation()
            yield taken
            if self._callbacks.stop is not None:
                return
            self._end_call()
            if self._callbacks.stop is not None:
                return
            block = following

    def _run(self, block: Block) -> BlockOutputs | EagerOutputs:
        """Runs a block, and keeps the reason if that compiled something."""
        compiled, began = compiled_so_far(), time.perf_counter()
        kept = self._stepper.run(block)
        self._times.dispatch += time.perf_counter() - began
        now = compiled_so_far()
        if now[0] > compiled[0]:
            block.slot.begin()  # because the pace must not include the compilation
            why = reasons.of(*self._stepper.signature(block))
            self._compilation = Compilation(self._stepper.name, now[1] - compiled[1], why)
        return kept

    def _notify_compilation(self) -> None:
        """Calls `on_compile` if the last call compiled something."""
        if self._compilation is not None:
            given, self._compilation = {"compilation": self._compilation}, None
            self._callbacks.notify("on_compile", partial(changed, self.record, given=given))

    def _end_call(self) -> None:
        """Calls `on_call_end`, or ends the run here if a signal has asked for its end."""
        end_if_asked()
        self._callbacks.notify("on_call_end", self._between_calls)

    def _save_at(self, point: Callable[[], Record] | None) -> None:
        """Sets the moment that a signal saves. Other passes leave it alone: it would be a cycle."""
        if self._guard.saves:
            self._guard.point = point

    def _between_calls(self) -> Record:
        given = {"metrics": Lazy(self._metrics_so_far)}
        given |= {"snapshot": Lazy(self.snapshot)} if self.record.mode == "train" else {}
        return changed(self.record, given=given)

    def _interrupted(self) -> Record:
        """The record of this moment as the one at which a signal ends the run."""
        return changed(self._between_calls(), interrupted=True)

    def _point(self) -> Callable[[], Record]:
        """Like `_interrupted`, but made now, because callbacks and arrays may change later."""
        record = self._interrupted()
        metrics = partial(to_host, self._stepper.totals()[0])
        given = {"snapshot": record.snapshot, "metrics": Lazy(metrics)}
        return partial(changed, record, given=given)

    def _point_before(self, block: Block) -> Callable[[], Record] | None:
        """The moment before a block that ends with a validation, if the run can be saved.

        A signal cuts the validation short. The resumed run then repeats the block and validates.
        """
        if not self._guard.saves:
            return None
        last = self._count + len(block)
        validations = [c.every for c in self._callbacks.callbacks if isinstance(c, Validation)]
        return self._point() if any(n and last % n == 0 for n in validations) else None

    @property
    def ended_by_max_steps(self) -> bool:
        """Whether `max_steps` ended the pass, possibly before the last batch."""
        return self._cut is not None

    def totals(self) -> list[Metrics | None]:
        """The metrics so far of each reader, from which a resumed run continues.

        At the end of a pass there are some only if `max_steps` ended it.
        """
        return self._stepper.totals() if self._cut is None else self._cut

    def _metrics_so_far(self) -> dict[str, Any]:
        return to_host(self._stepper.totals()[0])

    @property
    def last_batch(self) -> Batch | None:
        """The arrays of the newest batch used by a step; None before the first."""
        return None if self._last is None else self._last[0].arrays(self._last[1])

    @property
    def next_batch(self) -> Batch | None:
        """The arrays of the batch after `last_batch`; None if it has not been read yet."""
        if self._last is None or self._has_ended:
            return None
        block, index = self._last
        is_end = index + 1 == len(block)  # because runs are saved at the end of a block
        return self._following.arrays(0) if is_end and self._following is not None else None

    def end(self) -> dict[str, Any]:
        """Ends the pass: calls `on_epoch_end` and returns the metrics."""
        if self._guard.saves:  # because a signal may cut the validation in `on_epoch_end` short
            self._save_at(self._point())
        metrics = self._take_metrics()
        self._has_ended = True

        def now() -> Record:
            # The step's metrics come first, and win over those of `measure`.
            told = {**metrics, **self._measure(), **metrics}
            return self._with_experiment({"metrics": told})

        self._callbacks.notify("on_epoch_end", now)
        self._save_at(self._interrupted)
        return metrics

    def _take_metrics(self, reader: int = 0) -> dict[str, Any]:
        began = time.perf_counter()
        metrics = to_host(self._stepper.take_metrics(reader))
        self._times.device += time.perf_counter() - began
        return metrics

    def _measure(self) -> dict[str, Any]:
        """The values of `measure`, computed at most once per moment."""
        if self.record.mode != "train":
            return {}
        moment = self._count, self._has_ended
        if self._measured[0] != moment:
            self._measured = moment, self._callbacks.measured(self._with_experiment)
        return self._measured[1]

    def _take(self, feeder: Feeder, position: int, max_count: int | None) -> Block | None:
        room = self._cadence.room(position)
        if max_count is not None:
            room = min(room, max_count - position)
        return feeder.take(room) if room > 0 else None

    def _notify_steps(
        self, block: Block, kept: BlockOutputs | EagerOutputs, before: Callable[[], Record] | None
    ) -> BlockOutputs | EagerOutputs:
        """Calls the callbacks for each step of a block; rewinds to the step at which one stops.

        If a signal comes meanwhile, the run is saved as of `before`, or as of the step if no
        callback with a state is called for it. A callback in the middle of its hook has an
        inconsistent state.
        """
        start, first = self.record, self._count + 1
        for index in range(len(block)):
            stops = self._callbacks.stop is not None  # from `on_step_start`; one step is still run
            if not stops and not self._callbacks.is_due(first + index):
                continue
            self._stand_after(block, index + 1, start)
            give = self._giver(block, index, kept)
            is_whole = before is None and not self._callbacks.is_remembered(first + index)
            self._save_at(self._interrupted if is_whole else before)
            try:
                self._callbacks.notify_step_end(self.record, first + index, give)
            except BaseException:
                # The state of a donated call is gone, so the moment is the end of the call. Only
                # a callback with `can_stop = False`, which promised not to raise, gets here.
                if self._stepper.works_in_place:
                    is_last = index + 1 == len(block)
                    self._save_at(self._guard.point if is_last else None)
                    self._stand_after(block, len(block), start)
                else:
                    self._go_back_to(block, index + 1)
                raise
            if self._callbacks.stop is not None:
                self._go_back_to(block, index + 1)
                return kept.first(index + 1)
        self._stand_after(block, len(block), start)
        return kept

    def _stand_after(self, block: Block, count: int, start: Record) -> None:
        """Sets the moment after the `count`-th step of a block that started at `start`."""
        self.record = _advanced(start, count, block.num_examples)
        self._last = block, count - 1

    def _go_back_to(self, block: Block, count: int) -> None:
        """Restores the state after the `count`-th step, as if the call had ended there."""
        if count < len(block):
            self._stepper.rewind(block, count)

    def _giver(
        self, block: Block, index: int = 0, kept: BlockOutputs | EagerOutputs | None = None
    ) -> Any:
        """A function that makes each field in a callback's `needs` at a step."""

        def give(name: str, callback: Callback) -> Any:
            if name == "experiment":
                return self._stepper.experiment
            if name == "snapshot":
                return Lazy(self.snapshot)
            if name == "metrics":
                metrics = self._take_metrics(self._callbacks.reader(callback))
                return {**metrics, **self._measure(), **metrics}
            return block.batches[index] if name == "batch" else kept and kept[index]

        return give

    def _keep(self) -> Callable[[Batch], Batch] | None:
        """The function that keeps a batch for callbacks; None if no callback reads batches.

        It copies, because the data set may overwrite the batch when the next one is read.
        """
        eager = isinstance(self._stepper, EagerStepper)
        if not eager and not any("batch" in c.needs for c in self._callbacks.callbacks):
            return None
        return _as_it_is if self._owns_batches else own

    def _check(self) -> Any:
        if self.record.mode == "predict" or not overrides(self._stepper.kind, "check_batch"):
            return _accept
        return self._stepper.experiment.check_batch

    @property
    def _count(self) -> int:
        """The count for cadences: training steps of the run, or steps of this evaluation."""
        return self.record.step if self.record.mode == "train" else self.record.epoch_step

    def snapshot(self) -> Snapshot:
        """A snapshot of the run at the current moment."""
        return self._snapshot(self, self._has_ended)

    def _with_experiment(self, more: dict[str, Any] | None = None) -> Record:
        given = {"experiment": self._stepper.experiment, **(more or {})}
        if self.record.mode == "train":
            given["snapshot"] = Lazy(self.snapshot)
        return changed(self.record, given=given)


def _accept(batch: Batch) -> None:
    del batch


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _advanced(record: Record, steps: int, examples: int) -> Record:
    """The record after `steps` more steps of `examples` examples each."""
    return changed(
        record,
        step=record.step + (steps if record.mode == "train" else 0),
        epoch_step=record.epoch_step + steps,
        num_examples=record.num_examples + steps * examples,
    )
