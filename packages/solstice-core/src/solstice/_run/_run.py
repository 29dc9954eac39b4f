"""Run: the state of one run between its passes, and its snapshots."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import jax
import numpy as np

from solstice._engine._eager import EagerStepper
from solstice._engine._feed import BuffersByKind, StagingBuffers
from solstice._engine._interrupts import Guard
from solstice._engine._pace import Pace
from solstice._engine._step import Stepper
from solstice._experiment import Experiment
from solstice._left_out import LeftOut
from solstice._metrics import without_metrics
from solstice._record import Lazy, Record, Snapshot, Stop
from solstice._run._cadence import watchers_within
from solstice._run._callbacks import CallbackList
from solstice._run._computation import Computation
from solstice._run._explain import explanation
from solstice._run._monitored import check_monitors
from solstice._run._pass import Pass
from solstice._run._resume import SavedRun
from solstice._run._snapshot import Position, by_path, owners_of, states_of
from solstice._types import Batch, Outputs
from solstice.data._positions import fingerprint
from solstice.data._source import Source

_LOST = """\
The Experiment is lost: a compiled call failed, and its inputs were donated to save memory. The \
Experiment given to `fit` is unchanged. Resume from the newest checkpoint: write \
`trainer.fit(..., resume="last")`, with `solstice.callbacks.Checkpoint("runs/a", every=1000)` \
among the callbacks"""

_BLOCKS_AHEAD = 3
"""Blocks of batches that may be read but not trained yet: the next block, with a reserve."""


def _advice(lost: Mapping[str, Any]) -> str:
    """The advice for outputs that give no metrics."""
    arrays = [path.split("/")[-1] for path, leaf in lost.items() if np.ndim(leaf)]
    if not arrays:
        return "Leave it out, or return a number"
    return (
        f"Return a scalar, such as `{arrays[0]}.mean()`, or a solstice.Metrics, such as "
        f"`solstice.metrics.Collect({arrays[0]}={arrays[0]})`; or keep it for callbacks with "
        f'`needs = ("outputs",)`, and filter this warning'
    )


def _name_exhausted(error: BaseException) -> None:
    """Adds the line of a StopIteration that ended a generator of the Trainer.

    Python turns it into a RuntimeError, whose message does not name the line.
    """
    cause, trace = error.__cause__, None
    if isinstance(cause, StopIteration):
        trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None:
        code = trace.tb_frame.f_code
        error.add_note(
            f"A `next(...)` got StopIteration in {code.co_qualname}, "
            f"{code.co_filename}:{trace.tb_lineno}"
        )


class Run:
    """One run: its callbacks, its newest Experiment and its current moment.

    Args:
        callbacks: the callbacks of the run.
        experiment: the initial Experiment.
        start: the first moment.
        steps_per_call: the user's choice, or None.
        prefetch: the number of batches to read ahead.
        memory: staging buffers of earlier runs, by mode. The run takes them; `close` returns them.

    Attributes:
        has_begun: whether the first pass has started. Before, `trainer.experiment` and
            `trainer.history` are those of an earlier run.
    """

    def __init__(
        self,
        callbacks: CallbackList,
        experiment: Experiment,
        start: Record,
        steps_per_call: int | None,
        prefetch: int,
        memory: dict[str, BuffersByKind],
    ) -> None:
        self._callbacks = callbacks
        self._experiment = experiment
        self._start = start
        self._steps_per_call = steps_per_call
        self._stepper: Stepper | EagerStepper | None = None
        self._source: Source | None = None
        self._memory = memory
        self._slots: dict[str, StagingBuffers] = {}
        self._pass: Pass | None = None
        self._saved: SavedRun | None = None
        self._prefetch = prefetch
        self._left_out = LeftOut()
        self.has_begun = False
        self._is_lost = False
        self._explanation = "the run ended before its first step"
        self._computation = Computation()
        self._guard = Guard()

    @property
    def experiment(self) -> Experiment:
        """The newest Experiment; in a run that does not train, the given one.

        Raises:
            RuntimeError: a compiled call failed, and the Experiment is lost.
        """
        if self._is_lost:
            raise RuntimeError(_LOST)
        trains = self._stepper is not None and self._start.mode == "train"
        return self._stepper.experiment if trains and self._stepper else self._experiment

    @property
    def stopped(self) -> Stop | None:
        """The callback's request to stop, or None."""
        return self._callbacks.stop

    def stepper(
        self,
        experiment: Experiment,
        method: str,
        batch: Batch,
        steps_per_call: int | None = None,
    ) -> Stepper | EagerStepper:
        """The stepper for the steps of one kind, set up for the needs of the callbacks."""
        callbacks = self._callbacks.callbacks
        readers = self._callbacks.num_readers
        try:
            stepper = Stepper(
                experiment,
                method,
                batch,
                steps_per_call=steps_per_call or self._steps_per_call,
                keeps_outputs=method == "predict_step"
                or any("outputs" in c.needs for c in callbacks),
                can_rewind=bool(watchers_within(callbacks)),
                readers=readers,
            )
        except jax.errors.JAXTypeError as error:  # the step needs values, and tracing has none
            stepper = EagerStepper(experiment, method, error, readers, self._look)
        else:
            if method != "predict_step":
                self._look(stepper.name, stepper.outputs)
        self._computation.add_step(method, stepper)
        return stepper

    def _look(self, name: str, outputs: Outputs) -> None:
        """Warns of outputs of a step that give no metrics."""
        self._left_out.name(
            without_metrics(outputs), f"{name} returns outputs that give no metrics:", _advice
        )

    @contextmanager
    def saved_when_asked(self, guard: Guard) -> Generator[None, None, None]:
        """Within, a run that a signal ends is saved as of its newest consistent moment."""
        self._guard = guard
        try:
            yield
        except BaseException:
            if guard.asked is not None and guard.point is not None and not guard.is_urgent:
                moment, guard.point = guard.point(), None
                if moment.step > 0:  # before, there is nothing to save
                    self._callbacks.notify("on_call_end", lambda: moment)
            raise

    @contextmanager
    def interrupted(self) -> Generator[None, None, None]:
        """Runs another pass within, a validation; a request to stop takes effect after it."""
        within, asked = self._pass, self._callbacks.stop
        self._callbacks.stop = None
        yield
        self._pass, self._callbacks.stop = within, asked or self._callbacks.stop

    def begin(
        self, experiment: Experiment, stepper: Stepper | EagerStepper, source: Source
    ) -> None:
        """Calls `on_fit_start`, with an Experiment that is set up."""
        self._experiment = experiment
        self._source = source
        self._stepper = stepper
        if self._callbacks.takes_snapshots and self._saved is None:
            self._computation.begin_with(experiment)
        ahead = _BLOCKS_AHEAD * stepper.steps_per_block + self._prefetch
        source.keep_states(ahead if self._callbacks.takes_snapshots else 0)
        if self._start.mode == "train":
            check_monitors(self._callbacks.callbacks, self._computation.steps)
        self._callbacks.notify("on_fit_start", self._now)
        if self._saved is not None:
            self._saved.restore_callbacks(self._callbacks)

    def begin_pass(self, stepper: Stepper | EagerStepper, start: Record) -> Pass:
        """A pass over a data set that starts at a moment of this run."""
        slots = self._slots.get(start.mode)
        if slots is None:
            most, first = stepper.steps_per_block, stepper.first_steps
            pace = None if self._steps_per_call else Pace(most, first)  # the user's choice is kept
            slots = StagingBuffers(most, self._memory.pop(start.mode, None), pace)
            self._slots[start.mode] = slots
        self._callbacks.check_settings()
        self.has_begun = True
        self._pass = Pass(
            self._callbacks,
            stepper,
            slots,
            start,
            self._snapshot,
            self._guard,
            owns_batches=self._prefetch > 0,
        )
        return self._pass

    def resume(
        self,
        saved: SavedRun,
        stepper: Stepper | EagerStepper,
        source: Source,
        start: Record,
        max_steps: int | None,
        strict: bool,
    ) -> tuple[Stepper | EagerStepper, Record]:
        """Restores a saved run: its stepper and moment. `begin` restores the callbacks."""
        at = saved.position
        size = at.steps_per_call
        if self._steps_per_call is None and size != stepper.steps_per_call:
            # The saved number, because a program with another number may round differently.
            stepper = self.stepper(stepper.experiment, "train_step", source.first(), size)
        self._saved = saved
        self._computation.begin_with(stepper.experiment)
        caveats = saved.other_programs(stepper, self._computation)
        self._start, more = saved.restore(stepper, source, self._callbacks, start, max_steps)
        saved.report([*caveats, *more], strict)
        # The run continues with the scalars of the checkpoint, so a later resume compares these.
        self._computation.scalars |= at.computation.get("scalars", {})
        return stepper, self._start

    def _snapshot(self, training: Pass, has_ended: bool) -> Snapshot:
        """A snapshot of the run in a pass of training."""
        stepper, source = cast("Stepper", self._stepper), cast("Source", self._source)
        record, last = training.record, training.last_batch
        totals = zip(self._callbacks.reader_names, training.totals(), strict=True)
        stop = self._callbacks.stop
        position = Position(
            step=record.step,
            epoch=record.epoch,
            epoch_step=record.epoch_step,
            num_examples=record.num_examples,
            is_closed=has_ended,
            stop=None if stop is None else str(stop),
            steps_per_call=stepper.steps_per_call,
            backend=jax.default_backend(),
            last_batch=None if last is None else fingerprint(last),
            data=source.position(
                record.epoch_step,
                is_closed=has_ended and not training.ended_by_max_steps,
                following=training.next_batch,
            ),
            metrics={name: by_path(total) for name, total in totals if total is not None},
            callbacks=states_of(self._callbacks.callbacks),
            owners=owners_of(self._callbacks.callbacks),
            ended_by_max_steps=has_ended and training.ended_by_max_steps,
            steps_per_epoch=record.steps_per_epoch,
            computation=self._computation.note(),
        )
        return Snapshot(stepper.experiment, position.note())

    def explain(self) -> str:
        """The text of `Trainer.explain`."""
        mode = self._start.mode
        if self._stepper is None or self._source is None or mode not in self._slots:
            return self._explanation
        return explanation(mode, self._stepper, self._slots[mode], self._callbacks, self._source)

    def close(self) -> None:
        """Keeps the newest Experiment and the text of `explain`, and frees the rest.

        The staging buffers go to the next run, which need not allocate them. The rest is dropped
        here because it refers back to the run: Python would free such cycles too late for the next
        run on a device with little memory.
        """
        self._explanation = self.explain()
        if not self._is_lost:
            self._experiment = self.experiment
        self._memory.update({mode: slots.rings for mode, slots in self._slots.items()})
        self._callbacks, self._slots = CallbackList([]), {}
        self._guard.point = None
        self._stepper = self._source = self._pass = self._saved = None

    def end(self) -> None:
        """Calls `on_fit_end`."""
        self._callbacks.notify("on_fit_end", self._now)

    def fail(self, error: BaseException) -> None:
        """Calls `on_exception`, and adds the newest Experiment to the error."""
        stepper = self._stepper if self._start.mode == "train" else None
        if stepper is not None and isinstance(error, Exception):  # not Ctrl-C, which must not wait
            self._is_lost = stepper.is_lost
        record = self._now()
        self._callbacks.notify_exception(record, error)
        _name_exhausted(error)
        if self._is_lost:
            error.add_note(_LOST)
        elif stepper is not None and record.step > 0:
            with suppress(AttributeError):  # an exception may forbid attributes
                error.experiment = record.experiment  # pyright: ignore[reportAttributeAccessIssue]
            error.add_note(
                f"The newest Experiment, after step {record.step:,}, is `trainer.experiment`, "
                f"and `experiment` of this exception."
            )

    def _now(self) -> Record:
        record = self._start if self._pass is None else self._pass.record
        # A lost Experiment raises only when a callback reads it.
        experiment = Lazy(lambda: self.experiment) if self._is_lost else self.experiment
        return replace(record, mode=self._start.mode, given={"experiment": experiment})
