"""Run: one run over a data set, as the pieces from which the functions of the loop are made."""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from solstice._callback import Phase
from solstice._compiles import compiled_so_far, reasons
from solstice._engine import Block, BlockOutputs, Feeder, Guard, ResidentFeeder, end_if_asked
from solstice._experiment import Experiment
from solstice._loop._batch_check import BatchChecks
from solstice._loop._cadence import Cadence, cadence_of
from solstice._loop._epoch import Call, Epoch, Point
from solstice._loop._epoch_step import step_epoch
from solstice._loop._explain import explanation
from solstice._loop._hooks import Hooks
from solstice._loop._limits import Limits, next_epoch
from solstice._loop._meetings import Meetings
from solstice._loop._stages import Stage, Stages
from solstice._loop._state import RunState
from solstice._loop._validation import Validation, every_of
from solstice._record import Compilation, Record, changed

_BLOCKS_AHEAD = 3
"""Blocks of batches that may be read but not trained yet: the next block, with a reserve."""


class Run:
    """A run over a data set. The functions of the loop call its methods, in their order.

    Args:
        stage: the data set, with its stepper and buffers.
        hooks: the callbacks of the run.
        start: the moment at which it starts.
        stages: makes the stages of validations.
        limits: when a training run ends.
        guard: the effect of signals on the run.
        validation: the validation of a training run, or None.
        experiment: the Experiment to evaluate; None in training, where the stepper has it.
        outer: the training run around a validation.
        epoch: the state of the epoch in which a resumed run continues.

    Attributes:
        state: the current moment.
        has_begun: whether the first epoch has started.
    """

    def __init__(
        self,
        stage: Stage,
        hooks: Hooks,
        start: Record,
        stages: Stages,
        *,
        limits: Limits | None = None,
        guard: Guard | None = None,
        validation: Validation | None = None,
        experiment: Experiment | None = None,
        outer: "Run | None" = None,
        epoch: Epoch | None = None,
    ) -> None:
        self.stage = stage
        self.hooks = hooks
        self.stages = stages
        self.guard = guard or Guard()
        self.has_begun = False
        source = validation and validation.source
        kept = outer and outer.state.kept
        self.state = RunState(
            stage, hooks, start, stages.computation, source, experiment, kept, epoch
        )
        self._meetings = stages.peers and Meetings(stages.peers, self.state, hooks, self.guard)
        self._limits = limits or Limits()
        self._validation = validation
        is_given = experiment is not None
        # A validation uses those of its run, because they may need a copy of each array.
        self._checks = outer._checks if outer else BatchChecks(self.state, stage.stepper, is_given)

    @property
    def experiment(self) -> Experiment:
        """The newest Experiment; in a run that does not train, the given one.

        Raises:
            RuntimeError: a compiled call failed, and the Experiment is lost.
        """
        return self.state.experiment

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the newest epoch, or of the evaluation."""
        return self.state.metrics

    def start(self) -> None:
        """Calls `on_fit_start`, with an Experiment that is set up."""
        ahead = _BLOCKS_AHEAD * self.stage.stepper.sizes.steps_per_block + self.stage.prefetch
        # A state is a copy for each batch, so only for a run that may be saved.
        self.stage.source.keep_states(ahead if self.hooks.takes_snapshots else 0)
        self.hooks.notify("on_fit_start", self.state.of_run)

    def end(self) -> None:
        """Calls `on_fit_end`, after the last step."""
        self.stage.stepper.settle()
        self.state.kept.fetch()
        self.stages.wait()
        self.hooks.notify("on_fit_end", self.state.of_run)

    def epochs(self) -> Iterator[int]:
        """The epochs, until the limits are reached or a callback asks to stop."""
        start = self.state.at
        while not self._limits.reached(start, self.hooks.stop):
            self.state.start_epoch(start)
            yield start.epoch
            start = next_epoch(self.state.at)

    def start_epoch(self) -> None:
        """Calls `on_epoch_start`."""
        self.hooks.check_settings()
        self.has_begun = True
        self._wait("on_epoch_start")
        self.hooks.notify("on_epoch_start", self.state.of_epoch)

    @contextmanager
    def calls(self) -> Generator[Iterator[Call], None, None]:
        """The calls of the epoch, until its end, or the limits, or a request to stop."""
        epoch, times, keeps = self.state.at.epoch, self.state.times, self.hooks.read_batches
        with self.stage.feeder(epoch, times, *self._checks.of_epoch(), keeps) as feeder:
            yield self._calls(feeder)
        at, left = self.state.at, self._limits.room(self.state.count)
        if left is not None and left <= 0 and at.epoch_step != at.steps_per_epoch:
            # Before `end_epoch` takes the metrics, because a resumed run may continue the epoch.
            self.state.epoch.totals = self.stage.stepper.totals()

    def _calls(self, feeder: Feeder | ResidentFeeder) -> Iterator[Call]:
        state, most = self.state, self.stage.stepper.sizes.steps_per_block
        cadence = cadence_of(
            self.hooks.listeners, most, every_of(self._validation), self._limits.began
        )
        block = None if self.hooks.stop else self._take(feeder, cadence, state.count)
        while (call := self._call(block, feeder)) is not None:
            self._save_at(state.interrupted)
            try:  # fill the next block while the device works on this one
                count = state.count + len(call)
                state.epoch.following = self._take(feeder, cadence, count)
            except BaseException as error:  # raised after the hooks, because these steps have run
                state.epoch.failure = error
            yield call
            block = state.epoch.following

    def _take(self, feeder: Feeder | ResidentFeeder, cadence: Cadence, count: int) -> Block | None:
        left = self._limits.room(count)
        return feeder.take(cadence.room(count), left and max(left, 0))

    def _call(self, block: Block | None, feeder: Feeder | ResidentFeeder) -> Call | None:
        """Runs a block, after the hooks at its start; None at the end of the epoch."""
        state, stop, before = self.state, self.hooks.stop, None
        if block is not None and stop is None:
            before = self._point_before(block)
            self.guard.has_begun = True
            self._save_at(None)
            fields = partial(state.before_step, block)
            self.hooks.notify_step_start(state.at, state.count + 1, fields)
        if self._meetings is not None:
            block = self._meetings.before_call(feeder, block, stop)
        if block is None or (stop is not None and self._meetings is None):
            return None
        state.kept.settle()
        outputs, compilation = self._run_block(block)
        call = Call(block, outputs, state.at, before, compilation)
        state.start_call(call)
        return call

    def _run_block(self, block: Block) -> tuple[BlockOutputs, Compilation | None]:
        stepper = self.stage.stepper
        compiled, began = compiled_so_far(), time.perf_counter()
        if self._meetings is not None and self.stages.is_new(stepper, block):
            stepper.warm_up(block)
            what = f"{stepper.name} for batches of {block.num_examples}"
            self._meetings.wait_for_compilation(what)
        outputs = stepper.run(block, self.state.at.step)
        self.state.times.dispatch += time.perf_counter() - began
        now = compiled_so_far()
        if now[0] == compiled[0]:
            return outputs, None
        block.slot.begin()  # because the pace must not include the compilation
        why = reasons.of(*stepper.signature(block))
        return outputs, Compilation(stepper.name, now[1] - compiled[1], why)

    @contextmanager
    def hooks_of(self, call: Call) -> Generator[None, None, None]:
        """Within, hooks see the steps of a call. The run is then after the last step of the call.

        If a hook asked to stop, or failed, the run is after the step of this hook.
        """
        try:
            yield
        except BaseException as error:
            self._return_after_failure(call)
            self.state.epoch.note_failure(error)
            raise
        if self.hooks.stop is None:
            self.state.move_to(call, len(call))
        elif self._meetings is None:  # else all rewind together, before the next call
            self.state.rewind(call)
        else:
            self._meetings.after_stop(self._is_common(call))
        self._save_at(self.state.interrupted)
        self.state.epoch.raise_failure()

    def goes_on(self, call: Call) -> bool:
        """Whether no other process has stopped within this call, before all validate or save."""
        if self._meetings is not None and self.state.epoch.count == len(call):
            return self._meetings.goes_on(call, self._is_common(call))
        return True

    def _is_common(self, call: Call) -> bool:
        """Whether all processes work together in the hooks of the last step of a call."""
        last = call.start.step + len(call)
        return self.state.trains and (self.validates_at(last) or self.hooks.saves_at(last))

    def _return_after_failure(self, call: Call) -> None:
        count = self.state.epoch.count
        # Others would have to run these steps too.
        can_rewind = self._meetings is None
        if can_rewind and not self.stage.stepper.works_in_place and count > 0:
            self.state.rewind(call)
            return
        # The state of a donated call is gone, so the moment is the end of the call. Only a callback
        # with `can_stop = False`, which promised not to raise, gets here.
        self._save_at(self.guard.point if count == len(call) else None)
        self.state.move_to(call, len(call))

    def due_steps(self, call: Call) -> Iterator[int]:
        """The steps of a call at which a hook or the validation is due; the run moves to each.

        If a signal comes meanwhile, the run is saved as of before the call, or as of the step if
        no callback with a state is called for it. A callback in the middle of its hook has an
        inconsistent state.
        """
        first, is_due, every = self.state.count + 1, self.hooks.is_due, every_of(self._validation)
        stops = self.hooks.stop is not None  # from `on_step_start`; one step is still run
        for step in range(first, first + len(call)):  # plain code, because it runs at every step
            if not (stops or is_due(step) or (every is not None and step % every == 0)):
                continue
            self.state.move_to(call, step - first + 1)
            is_whole = call.before is None and not self.hooks.is_remembered(step)
            is_whole = is_whole and not self.validates_at(step)  # of a large state, or not saved
            self._save_at(self.state.interrupted if is_whole else call.before)
            yield step
            if self.hooks.stop is not None:
                return

    def notify_step(self, step: int, *phases: Phase) -> None:
        """Calls `on_step_end` of the callbacks of these phases that are due at a step."""
        self.hooks.notify_step_end(phases, self.state.at, step, self.state.after_step)

    def outputs_of(self, call: Call) -> BlockOutputs:
        """The outputs of a call, up to the step at which a hook asked to stop."""
        return call.outputs.first(self.state.epoch.count)

    def end_call(self, call: Call) -> None:
        """Calls `on_compile` and `on_call_end`, or ends the run if a signal has asked for it."""
        if call.compilation is not None:
            given = {"compilation": call.compilation}
            self.hooks.notify("on_compile", partial(changed, self.state.at, given=given))
        if self.hooks.stop is None:
            end_if_asked()
            self.hooks.notify("on_call_end", self.state.of_call_end)

    def end_epoch(self) -> None:
        """Ends the epoch, and takes its metrics."""
        if self.guard.saves:  # because a signal may cut the validation that follows short
            self._save_at(self.state.point())
        self.state.end_epoch()

    def log_epoch(self) -> None:
        """Calls `on_epoch_end` of the callbacks that log, unless the saved run has done that."""
        if not self.state.epoch.was_logged:
            self.notify_epoch_end(Phase.LOG)

    def step_epoch(self) -> None:
        """Calls `epoch_step` of the Experiment, if it has one and the epoch is complete."""
        if self.state.steps_epochs:
            self.stage = step_epoch(self.state, self.stage, self.stages, self.hooks)
            self._checks = BatchChecks(self.state, self.stage.stepper, is_given=False)

    def notify_epoch_end(self, *phases: Phase) -> None:
        """Calls `on_epoch_end` of the callbacks of these phases."""
        self._wait("on_epoch_end")
        self.hooks.notify("on_epoch_end", self.state.of_epoch_end, phases)

    def _wait(self, hook: str) -> None:
        """Waits for the device if a callback wants it, such as one that measures time."""
        if self.hooks.wait_for_device(hook):
            self.state.kept.fetch()

    def close_epoch(self) -> None:
        """Marks a training epoch, with its validation, as complete."""
        if self._meetings is not None:
            self._meetings.between_calls("after the epoch")
        if self.guard.saves:  # now, because the data set goes on to the next epoch
            self._save_at(self.state.point())
        if not self.state.epoch.ended_by_max_steps and self.hooks.stop is None:
            self.stage.source.end_epoch(self.state.at.epoch)

    def validates_at(self, step: int) -> bool:
        """Whether a validation is due at a training step, within an epoch."""
        return self._validation is not None and self._validation.is_due(step)

    @property
    def validates_epoch(self) -> bool:
        """Whether a validation is due at the end of this epoch."""
        validation, is_complete = self._validation, self.state.epoch.is_complete
        return validation is not None and validation.every is None and is_complete

    @contextmanager
    def validation(self) -> Generator["Run", None, None]:
        """The run of a validation at this moment. A request to stop takes effect after it."""
        at, source = self.state.at, cast("Validation", self._validation).source
        hooks = self.hooks.nested()
        stage = self.stages.validation(source, self.stage.stepper, hooks, at.epoch)
        start = changed(at, mode="val", given={}, epoch_step=0, num_examples=0)
        start = changed(start, steps_per_epoch=source.length)
        run = Run(stage, hooks, start, self.stages, outer=self)
        try:
            yield run
            if self.state.steps_epochs:
                self.state.epoch.take_validated(run.state.epoch)
        finally:
            self.state.kept.settle()
            stage.stepper.return_state()

    def explain(self) -> str:
        """The text of `Trainer.explain`."""
        return explanation(self.state.at.mode, self.stage, self.hooks, every_of(self._validation))

    def _save_at(self, point: Point | None) -> None:
        """Sets the moment that a signal saves. Other runs leave it alone: it would be a cycle."""
        if self.guard.saves:
            self.guard.point = point

    def _point_before(self, block: Block) -> Point | None:
        """The moment before a block that ends with a validation, if the run can be saved.

        A signal cuts the validation short. The resumed run then repeats the block and validates.
        This moment is a copy of the state, so with a large one a signal waits for the validation.
        """
        is_needed = self.guard.saves and self.validates_at(self.state.count + len(block))
        return self.state.point() if is_needed and self.state.is_small else None
