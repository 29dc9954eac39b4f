"""One pass over a data set in one mode: an epoch of training, an evaluation, a prediction."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from solstice._callback import Callback, CallbackList, Record
from solstice._experiment import overrides
from solstice._metrics import num_examples, to_host
from solstice._step import Stepper
from solstice._types import Batch, Outs
from solstice._windows import Windows

_EPOCH = "epoch"


class Pass:
    """Takes a step for each batch, and tells the callbacks.

    Args:
        callbacks: whom to tell.
        stepper: what takes the steps.
        record: the moment at which the pass begins.

    Attributes:
        record: the moment now.
    """

    def __init__(self, callbacks: CallbackList, stepper: Stepper, record: Record) -> None:
        self.record = record
        self._callbacks = callbacks
        self._stepper = stepper
        self._windows = Windows([_EPOCH, *callbacks.want_metrics])

    def steps(self, batches: Iterable[Batch]) -> Iterator[Outs]:
        """Yields the outs of each step, until the batches end or a callback asks to stop."""
        experiment = self._stepper.experiment
        checks = self.record.mode != "predict" and overrides(experiment, "check_batch")
        self._callbacks.tell("on_epoch_start", self._with_experiment())
        if self._callbacks.stop is not None:
            return
        for batch in batches:
            if checks:
                experiment.check_batch(batch)
            yield self._step(batch)
            if self._callbacks.stop is not None:
                return

    def end(self) -> dict[str, Any]:
        """Ends the pass: its metrics, of which the callbacks are told."""
        self._windows.add(self._stepper.take_metrics())
        metrics = to_host(self._windows.take(_EPOCH))
        self._callbacks.tell("on_epoch_end", self._with_experiment(metrics=dict(metrics)))
        return metrics

    def _step(self, batch: Batch) -> Outs:
        given: dict[str, Any] = {"batch": batch}

        def give(name: str, callback: Callback) -> Any:
            if name == "experiment":
                return self._stepper.experiment
            if name == "metrics":
                self._windows.add(self._stepper.take_metrics())
                return to_host(self._windows.take(callback))
            return given[name]

        self._callbacks.tell_step_start(self.record, self._count + 1, give)
        given["outs"] = self._stepper.step(batch)
        self.record = _advance(self.record, num_examples(batch))
        self._callbacks.tell_step_end(self.record, self._count, give)
        return given["outs"]

    @property
    def _count(self) -> int:
        """What cadences count: training steps of the run, or steps of this evaluation."""
        return self.record.step if self.record.mode == "train" else self.record.epoch_step

    def _with_experiment(self, **given: Any) -> Record:
        return replace(self.record, given={"experiment": self._stepper.experiment, **given})


def _advance(record: Record, examples: int) -> Record:
    return replace(
        record,
        step=record.step + (record.mode == "train"),
        epoch_step=record.epoch_step + 1,
        num_examples=record.num_examples + examples,
    )
