"""Session: starts the runs of a Trainer, with its options and its callbacks."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

from solstice._arguments import switch
from solstice._callback import Callback
from solstice._engine import interrupts_guarded
from solstice._errors import CheckpointError
from solstice._experiment import Experiment
from solstice._loop import (
    Evaluation,
    Hooks,
    Run,
    Stages,
    Training,
    Until,
    check_callbacks,
    evaluate,
    predict,
    saved_run,
    train,
)
from solstice._options import Options
from solstice._own_run import keepers
from solstice._record import Snapshot
from solstice._runs import Runs
from solstice._sources import Source
from solstice._types import Dataset, Outputs

if TYPE_CHECKING:
    from solstice._loop import Branch, SavedRun


@dataclass(frozen=True)
class Session:
    """The parts of a Trainer with which a run starts.

    Attributes:
        options: the options of the Trainer.
        runs: its runs so far.
        callbacks: its callbacks, with its own History.
        hyperparameters: those of the run, or None.
    """

    options: Options
    runs: Runs
    callbacks: list[Callback]
    hyperparameters: dict[str, Any] | None

    @contextmanager
    def training(
        self,
        experiment: Experiment,
        train_ds: Dataset,
        val_ds: Dataset,
        *,
        num_epochs: int | None,
        max_steps: int | None,
        batch_size: int | None,
        resume: "str | PathLike[str] | SavedRun | None",
        strict_resume: bool,
        donate: bool,
        branch: "Branch | None" = None,
    ) -> Generator[Run, None, None]:
        """A training run, after `on_fit_start`, to be trained within; see `Trainer.fit`."""
        options = self.options
        self.runs.check_idle()
        stages = self._stages(experiment if switch("donate", donate) else None)
        limits = options.limits(num_epochs, max_steps)
        callbacks = check_callbacks(self.callbacks)
        branch = None if options.fast_dev_run else branch
        own = keepers(callbacks, branch)
        callbacks += own  # the last of the phase SAVE
        with stages.notified():
            stages.check_run(options.words("fit", limits), callbacks)
            again = partial(self.replay, experiment, train_ds, val_ds, batch_size=batch_size)
            saved = self._saved(resume, branch, callbacks, stages, again)
            training = Training(
                options.training_source(train_ds, batch_size, limits.num_epochs),
                options.validation(val_ds, batch_size, train_ds, limits.num_epochs),
                limits,
                options.sanity_val_batches,
                saved,
                switch("strict_resume", strict_resume),
                self.hyperparameters,
                bool(own),
                options.of_batches(batch_size),
            )
            hooks = Hooks(callbacks, "train", saved and saved.stop, is_lead=stages.is_lead)
            several = stages.peers is not None
            with interrupts_guarded(saves=hooks.saves, agrees=several) as guard:
                with self.runs.preparing(hooks, training.start, experiment):
                    run = training.run(experiment, hooks, stages, guard)
                with self.runs.running(run):
                    run.start()
                    if saved is not None:  # after `on_fit_start`, which resets them
                        saved.restore_callbacks(hooks)
                    if branch is not None and saved is not None:
                        branch.begin(saved, run.state.snapshot)
                    here = own if stages.is_lead else []
                    self.runs.after_evaluation = [keeper.note_evaluation for keeper in here]
                    for keeper in here:
                        with keeper.tried():
                            about = training.described(stages.computation)
                            about["options"] = options.of_batches(batch_size)
                            keeper.begin(run.state.at, saved and saved.path, hooks, about)
                    yield run

    def _saved(
        self,
        resume: "str | PathLike[str] | SavedRun | None",
        branch: "Branch | None",
        callbacks: list[Callback],
        stages: Stages,
        replay: "Callable[[SavedRun, int], Snapshot]",
    ) -> "SavedRun | None":
        """The saved run with which a training run continues, or starts as a branch."""
        if self.options.fast_dev_run:
            return None
        if branch is not None:
            branch.check(callbacks)
            resume = branch.saved(callbacks, replay)
        return saved_run(resume, callbacks, stages.peers)

    def replay(
        self,
        experiment: Experiment,
        train_ds: Dataset,
        val_ds: Dataset,
        saved: "SavedRun",
        step: int,
        *,
        batch_size: int | None,
    ) -> Snapshot:
        """A saved run at a later step, trained again without callbacks that have side effects.

        Raises:
            CheckpointError: the run ends before the step.
        """
        until = Until(step)
        quiet = [callback for callback in self.callbacks if not callback.has_side_effects]
        with replace(self, runs=Runs(), callbacks=[*quiet, until], hyperparameters=None).training(
            experiment,
            train_ds,
            val_ds,
            num_epochs=None,
            max_steps=step + 1,
            batch_size=batch_size,
            resume=saved,
            strict_resume=False,
            donate=False,
        ) as run:
            if run.state.at.step == step:
                until.snapshot = run.state.snapshot()
            if not until.is_there(run.state.at):
                train(run)
        if until.snapshot is None:
            why = "" if run.hooks.stop is None else f" ({run.hooks.stop})"
            raise CheckpointError(
                f"{saved.path} has no step {step:,}: the run ends after step "
                f"{run.state.at.step:,}{why}"
            )
        return until.snapshot

    def measure(
        self, experiment: Experiment, ds: Dataset, batch_size: int | None, evaluation: Evaluation
    ) -> dict[str, Any]:
        """The metrics of an evaluation; see `Trainer.validate`."""
        source = self.options.source(ds, evaluation.mode, batch_size)
        with self._evaluating(experiment, source, evaluation) as run:
            evaluate(run)
            metrics = run.metrics
        for note in self.runs.after_evaluation:
            note()
        return metrics

    def predict(
        self, experiment: Experiment, ds: Dataset, batch_size: int | None
    ) -> Iterator[Outputs]:
        """The outputs of each batch; see `Trainer.predict`."""
        source = self.options.source(ds, "predict", batch_size)
        # Not a generator itself, which would raise these errors only when it is read.
        return self._predict(experiment, source)

    def _predict(self, experiment: Experiment, source: Source) -> Iterator[Outputs]:
        with self._evaluating(experiment, source, Evaluation("predict")) as run:
            yield from predict(run)

    def _stages(self, given: Experiment | None = None) -> Stages:
        return Stages(self.options.of_stages(given), self.runs.memory)

    @contextmanager
    def _evaluating(
        self, experiment: Experiment, source: Source, evaluation: Evaluation
    ) -> Generator[Run, None, None]:
        """A run that does not train, after `on_fit_start`."""
        stages, start = self._stages(), evaluation.start(source, self.hyperparameters or {})
        callbacks = check_callbacks(self.callbacks)
        hooks = Hooks(callbacks, evaluation.mode, is_lead=stages.is_lead)
        with stages.notified():
            stages.check_run(self.options.words(evaluation.mode), callbacks)
            with self.runs.preparing(hooks, start, experiment):
                run = evaluation.run(experiment, source, hooks, stages, start)
            with self.runs.running(run):
                run.start()
                yield run
