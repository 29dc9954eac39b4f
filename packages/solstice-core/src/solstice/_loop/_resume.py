"""SavedRun: finds the checkpoint of a run, and restores the run from it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from solstice import checkpoint
from solstice._callback import Callback, named
from solstice._console import say_once
from solstice._engine import Stepper
from solstice._experiment import Experiment
from solstice._hyperparameters import changes
from solstice._loop._about import About, Parent
from solstice._loop._caveats import Caveats, Judge, report
from solstice._loop._computation import Computation, is_same, scalars_of, with_leaves
from solstice._loop._epoch import Epoch
from solstice._loop._hooks import Hooks
from solstice._loop._limits import Limits, next_epoch
from solstice._loop._owners import matched, uncounted
from solstice._loop._snapshot import Position, owners_of
from solstice._loop._stages import Stage, Stages
from solstice._record import Record, Stop, made
from solstice._schema import SchemaError
from solstice._sources import Source
from solstice.checkpoint import CheckpointError, load_renamed

_UNKNOWN_START = "the checkpoints of the run do not say with which Experiment it started"


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint of a run.

    Attributes:
        path: the folder of the checkpoint.
        position: the position of the run.
        versions: the versions of the packages that it used.
        hyperparameters: those of its Trainer.
        state: makes the Experiment from a new one, in place of reading the checkpoint.
        judge: refuses caveats, in place of a warning.
        leaves: the run that a branch leaves here; None for a run that continues.
        origin: the checkpoint from which this run was replayed, or None.
    """

    path: Path
    position: Position
    versions: dict[str, str]
    hyperparameters: dict[str, Any] = field(default_factory=dict[str, Any])
    state: Callable[[Experiment], Experiment] | None = None
    judge: Judge | None = None
    leaves: Parent | None = None
    origin: "SavedRun | None" = None

    @property
    def is_start(self) -> bool:
        """Whether the run is before its first step."""
        return self.position.step == 0

    @property
    def stop(self) -> Stop | None:
        """The request to stop of the saved run, or None."""
        return None if self.position.stop is None else Stop(self.position.stop)

    def moment(self, start: Record, limits: Limits) -> Record:
        """The moment at which the run continues: within an epoch, or before one."""
        at = self.position
        within = replace(
            start,
            step=at.step,
            epoch=at.epoch,
            epoch_step=at.epoch_step,
            num_examples=at.num_examples,
        )
        if not at.is_closed:
            return within
        before = replace(within, epoch_step=0)
        has_more = at.ended_by_max_steps and not limits.reached(before, at.stop)
        return within if has_more else next_epoch(within)

    def epoch(self, start: Record, limits: Limits) -> int:
        """The epoch in which the run continues; its last epoch if the run has ended."""
        moment = self.moment(start, limits)
        over = limits.reached(moment, self.position.stop)
        return self.position.epoch if over else moment.epoch

    def resumed(
        self,
        stage: Stage,
        stages: Stages,
        hooks: Hooks,
        start: Record,
        limits: Limits,
        about: About,
        *,
        validation: Source | None,
        strict: bool,
    ) -> tuple[Stage, Record]:
        """The stage and the moment with which this run continues.

        The callbacks are restored later, after `on_fit_start`.

        Args:
            stage: the stage of the training data, with a new Experiment.
            stages: makes another stage if the steps per call differ.
            hooks: the callbacks of the run.
            start: the moment at which a new run would start.
            limits: when the run ends.
            about: what stays the same in a new run.
            validation: the validation set, or None.
            strict: whether a caveat is an error.
        """
        computation, size = stages.computation, self.position.steps_per_call
        # Before the Experiment is loaded, because the scalars that are given now are compared.
        computation.begin_with(stage.stepper.share_experiment())
        like = stage.stepper.share_experiment()
        experiment, renamed = self._load(like, in_any_shape=stage.steps_epochs)
        experiment, scalars = self._with_scalars(experiment, like, computation)
        if stage.steps_epochs and not stage.stepper.take_state(experiment):
            stage = stages.follow(stage, experiment, hooks)  # `epoch_step` has changed the shapes
        if self.position.loops != stage.stepper.sizes.loops:
            # The saved number, because a program without a loop may round differently. Other
            # numbers are trip counts of one program, and those of data on the device are as large
            # as an epoch, for which the host may not have the memory.
            first = stage.stepper.share_experiment()
            stage = stages.stage(stage.source, first, "train_step", hooks, steps_per_call=size)
        steps = [*self.other_programs(stage.stepper, computation), *renamed]
        at, more = self.restore(stage, experiment, hooks, start, limits, validation)
        caveats = Caveats(
            computation.caveats_of_machine,
            [*steps, *self._other_start(about), *more],
            scalars,
            (self.origin or self).other_callbacks(hooks),
        )
        self._judge(caveats, strict=strict)
        computation.about = self._about(about, caveats, start)
        if self.leaves is None:
            # It continues with the scalars of the checkpoint, so a later resume compares these.
            computation.scalars |= self.position.computation.get("scalars", {})
        return stage, at

    def _judge(self, caveats: Caveats, *, strict: bool) -> None:
        """Warns of the caveats, or raises an error; a branch records them, unless it is strict."""
        if self.judge is not None:
            self.judge(caveats)
        if self.judge is None or strict:
            records = self.leaves is not None and not strict
            report(self.path, Caveats(caveats.machine) if records else caveats, strict=strict)

    def _about(self, now: About, caveats: Caveats, start: Record) -> About:
        """What stays the same in the run that continues; a branch begins with other settings."""
        settings = changes(self.hyperparameters, start.hyperparameters)
        if self.leaves is None:
            if settings:
                say_once(f"resuming {self.path} with other hyperparameters: {'; '.join(settings)}")
            return replace(self.position.about, options=now.options)
        found = [*caveats.steps, *caveats.scalars, *caveats.callbacks, *settings]
        return replace(now, start=None, parent=replace(self.leaves, changes=found))

    def _with_scalars(
        self, experiment: Experiment, given: Experiment, computation: Computation
    ) -> tuple[Experiment, list[str]]:
        """The Experiment with the scalars that a branch changes; all changed scalars in words.

        A scalar that the run itself has changed, as a schedule or training does, is kept.
        """
        changed = computation.changed_scalars(self.position.computation)
        if not changed or self.leaves is None:
            return experiment, [change.kept for change in changed]
        saved = scalars_of(experiment)
        taken = {c.path: c for c in changed if c.path in saved and is_same(saved[c.path], c.was)}
        words = [c.taken if c.path in taken else c.kept for c in changed]
        return with_leaves(experiment, given, taken), words

    def _load(self, like: Experiment, *, in_any_shape: bool) -> tuple[Experiment, list[str]]:
        """The Experiment at this position, and classes that were renamed, in words."""
        if self.state is not None:
            return self.state(like), []
        return load_renamed(self.path, like, in_any_shape=in_any_shape)

    def _other_start(self, now: About) -> list[str]:
        """The differences of the start of this run, if that is where it continues."""
        was = self.position.about.start
        if not self.is_start or now.start is None:
            return []
        return [_UNKNOWN_START] if was is None else was.changes(now.start)

    def restore(
        self,
        stage: Stage,
        experiment: Experiment,
        hooks: Hooks,
        start: Record,
        limits: Limits,
        validation: Source | None,
    ) -> tuple[Record, list[str]]:
        """Restores the stepper and the data set; reads no data if the run has ended.

        Returns:
            The moment at which the run continues, and caveats: possible differences from an
            uninterrupted run.
        """
        at, moment = self.position, self.moment(start, limits)
        stepper, source = stage.stepper, stage.source
        caveats = list[str]()
        if limits.reached(moment, at.stop):
            self._say("it has ended", moment)
        else:
            caveats += self._seek(source, moment, validation)
            # With an `epoch_step`, which has not run, an epoch of no more steps follows.
            may_skip = at.ended_by_max_steps and not stage.steps_epochs
            if may_skip and source.is_at_end():
                moment = next_epoch(moment)
        taken = self._taken(hooks)
        readers = {"epoch": "epoch", **taken}
        totals = [at.metrics.get(readers.get(name, "")) for name in hooks.reader_names]
        if moment.epoch != at.epoch:
            totals[0] = None  # because the metrics of the saved epoch are complete
        try:
            stepper.restore(experiment, totals)
        except KeyError as error:
            stepper.restore(experiment, [None] * len(totals))
            caveats.append(f"the metrics of the epoch so far are lost ({error})")
        return moment, caveats

    def state_of(self, moment: Record) -> Epoch:
        """The state of the epoch that continues at a moment."""
        at = self.position
        if moment.epoch != at.epoch:
            return Epoch()
        return Epoch(was_logged=at.is_logged, validated=made(at.validated))

    def _seek(self, source: Source, moment: Record, validation: Source | None) -> list[str]:
        at, is_over = self.position, moment.epoch != self.position.epoch
        back = source.seek(
            at.epoch,
            at.epoch_step,
            at.data,
            at.last_batch,
            is_closed=is_over,
            validation=validation,
        )
        self._say(f"the data set continues {back.how}", moment)
        if back.is_same:
            return back.changes
        other = (
            f"{source.name} gives other batches than in the saved run, or in another order; "
            f"if it shuffles, give it a seed"
        )
        return [other, *back.changes]

    def restore_callbacks(self, callbacks: Hooks) -> None:
        """Restores the state of each callback; in a branch, loggers start new files and runs."""
        there = named(callbacks.callbacks)
        for name, saved in self._taken(callbacks).items():
            if saved in self.position.callbacks and not self._starts(there[name]):
                self._restore_callback(name, there[name], self.position.callbacks[saved])

    def _restore_callback(self, name: str, callback: Callback, state: Any) -> None:
        try:
            callback.load_state_dict(state)
        except (SchemaError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"{self.path / 'manifest.json'} has a state of {name} that its `load_state_dict` "
                f"refuses: {error!r:.200}"
            ) from error

    def _starts(self, callback: Callback) -> bool:
        """Whether a callback starts without a state in any case."""
        return self.leaves is not None and callback.has_side_effects

    def _taken(self, callbacks: Hooks) -> dict[str, str]:
        """The name of the saved callback whose state each callback gets, by its name."""
        return matched(self.position.owners, owners_of(callbacks.callbacks))

    def other_callbacks(self, callbacks: Hooks) -> list[str]:
        """Caveats about callbacks: removed, new, or impossible to distinguish."""
        at, there, taken = self.position, named(callbacks.callbacks), self._taken(callbacks)
        if self.is_start:
            return []
        saved = {name: owner for name, owner in at.owners.items() if name in at.callbacks}
        owners = owners_of(callbacks.callbacks)
        now = {
            name: owners[name]
            for name, callback in there.items()
            if taken.get(name) in saved or (_remembers(callback) and not self._starts(callback))
        }
        gone = [
            f"{name} is not among the callbacks now: {saved[name]}"
            for name in saved
            if name not in taken.values()
        ]
        new = [
            f"{name} is new, so it starts without the state of that run: {now[name]}"
            for name in now
            if taken.get(name) not in saved
        ]
        return [*gone, *new, *uncounted(saved, now)]

    def other_programs(self, stepper: Stepper, computation: Computation) -> list[str]:
        """The reasons why the next steps may compute other numbers than the saved run."""
        at, found = self.position, list[str]()
        # The numbers are trip counts of one program; a call without a loop is another.
        if at.loops != stepper.sizes.loops:
            found.append(
                f"steps_per_call was {at.steps_per_call}, and is {stepper.sizes.steps_per_call} "
                f"{'in' if stepper.sizes.loops else 'without'} a loop"
            )
        if at.backend != jax.default_backend():
            found.append(f"it ran on {at.backend}, and this is {jax.default_backend()}")
        for name in ("jax", "jaxlib"):
            was, now = self.versions.get(name), checkpoint.versions().get(name)
            if was != now:
                found.append(f"{name} was {was}, and is {now}")
        # Digests are comparable only within one JAX, because another traces other operations.
        same_jax = self.versions.get("jax") == checkpoint.versions().get("jax")
        return found + computation.changes(at.computation, same_jax=same_jax)

    def _say(self, text: str, moment: Record) -> None:
        at = self.position
        where = "after" if moment.epoch != at.epoch else f"at batch {at.epoch_step:,} of"
        say_once(f"resuming {self.path}, step {at.step:,}, {where} epoch {at.epoch + 1}; {text}")


def _remembers(callback: Callback) -> bool:
    """Whether a callback has a state."""
    try:
        return bool(callback.state_dict())
    except AttributeError:  # because its state is made in `on_fit_start`, which has not run yet
        return True
