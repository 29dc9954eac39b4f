"""A training run, from its data sets and its Experiment, or from a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solstice._batch import arrays_of, describe_batch
from solstice._callback import Callback
from solstice._engine import Guard
from solstice._errors import CheckpointError
from solstice._experiment import Experiment
from solstice._loop._about import About
from solstice._loop._computation import Computation
from solstice._loop._hooks import Hooks
from solstice._loop._limits import Limits
from solstice._loop._loop import evaluate
from solstice._loop._monitored import check_monitors, check_own_monitor
from solstice._loop._peers import Peers, check_saved
from solstice._loop._run import Run
from solstice._loop._stages import Stage, Stages, first_batch
from solstice._loop._validation import Validation
from solstice._record import Record
from solstice._sources import Source
from solstice._types import Batch, Mode

if TYPE_CHECKING:
    from solstice._loop._branch import Branch
    from solstice._loop._resume import SavedRun


def saved_run(
    resume: "str | PathLike[str] | SavedRun | None",
    callbacks: Sequence[Callback],
    peers: Peers | None = None,
) -> "SavedRun | None":
    """The saved run to continue; None to start a new run.

    Raises:
        DataError: another process has found another one.
    """
    if resume is None:
        return None
    from solstice._loop._find import find_saved  # only runs that resume load the checkpoints

    try:
        found = find_saved(resume, callbacks)
    except CheckpointError as error:
        if peers is not None:
            error.add_note(
                "All processes read the checkpoint: give an absolute path, in a folder that all "
                "hosts share"
            )
        raise
    if peers is not None:
        check_saved(peers, None if found is None else found.path)
    return found


def _set_up(experiment: Experiment, batch: Batch) -> Experiment:
    """The Experiment after `setup`. A model fails there for inputs of another shape."""
    try:
        return experiment.setup(batch)
    except Exception as error:
        error.add_note(f"setup was given this batch: {describe_batch(batch)}")
        raise


def branch_of(
    resume: str | PathLike[str] | None, at_step: int | None, branch: str | PathLike[str] | None
) -> "Branch | None":
    """The branch that these arguments of `fit` ask for; None for another run.

    Raises:
        ValueError: one of the arguments is missing, or the folders are the same.
    """
    if at_step is None and branch is None:
        return None
    from solstice._loop._branch import Branch  # as above

    return Branch.of(resume, at_step, branch)


def saved_before(folder: Path, step: int) -> "SavedRun":
    """The newest saved run of a folder at or before a step; its start if there is none.

    Args:
        folder: the run folder, or one of its checkpoints.
        step: the training step.

    Raises:
        CheckpointError: the folder has no checkpoint of a run.
    """
    from solstice._loop._find import find_before  # as above

    return find_before(folder, step)


@dataclass(frozen=True)
class Evaluation:
    """A run that does not train.

    Attributes:
        mode: "val", "test" or "predict".
        as_evaluated: as in `StageOptions`.
    """

    mode: Mode
    as_evaluated: Callable[[Experiment, Batch], Experiment] | None = None

    def start(self, source: Source, hyperparameters: Mapping[str, Any]) -> Record:
        """The moment at which the run starts."""
        length = source.length
        return Record(mode=self.mode, steps_per_epoch=length, hyperparameters=hyperparameters)

    def run(
        self, experiment: Experiment, source: Source, hooks: Hooks, stages: Stages, start: Record
    ) -> Run:
        """The run, before `on_fit_start`; its step has been traced."""
        evaluated, method = experiment, "predict_step"
        # A batch to predict may have no targets, which `setup` may need.
        if self.mode != "predict":
            batch, method = arrays_of(first_batch(source)), "eval_step"
            evaluated = experiment = _set_up(experiment, batch)
            if self.as_evaluated is not None:
                evaluated = self.as_evaluated(experiment, batch)
        stage = stages.stage(source, evaluated, method, hooks)
        return Run(stage, hooks, start, stages, experiment=experiment)


@dataclass(frozen=True)
class Training:
    """The arguments of a training run.

    Attributes:
        source: the training data set.
        validation: the validation, or None.
        limits: when the run ends.
        sanity_val_batches: the number of batches to evaluate before the first step, or None.
        saved: the saved run to continue, or None.
        strict: whether a caveat of resuming is an error.
        hyperparameters: those of the Trainer; None for those of the saved run.
        is_described: whether a callback describes the computation, as a checkpoint does.
        options: the options of the Trainer that decide which batches a run reads.
    """

    source: Source
    validation: Validation | None
    limits: Limits
    sanity_val_batches: int | None = None
    saved: "SavedRun | None" = None
    strict: bool = False
    hyperparameters: Mapping[str, Any] | None = None
    is_described: bool = False
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def run(self, experiment: Experiment, hooks: Hooks, stages: Stages, guard: Guard) -> Run:
        """The run, before `on_fit_start`; all its steps have been traced."""
        batch = arrays_of(first_batch(self.source))
        experiment = _set_up(experiment, batch)
        stage = stages.stage(self.source, experiment, "train_step", hooks)
        at = self.start
        # Before `resumed`, which compares the step of the validation too.
        if self.validation is not None:
            self._try_validation(self.validation.source, stage, stages, hooks.nested())
        about = About.new(self.options)
        # These read the state back from the device, so only for a run that is saved.
        if self.saved is not None:
            validation = self.validation and self.validation.source
            if self.saved.is_start:
                about = about.begun_with(stage.stepper.share_experiment(), batch)
            stage, at = self.saved.resumed(
                stage,
                stages,
                hooks,
                at,
                self.limits,
                about,
                validation=validation,
                strict=self.strict,
            )
        elif hooks.takes_snapshots or self.is_described:
            first = stage.stepper.share_experiment()
            stages.computation.begin_with(first)
            steps = stages.computation.note()["steps"] if stage.steps_epochs else None
            stages.computation.about = about.begun_with(first, batch, steps)
        check_monitors(hooks.callbacks, stages.computation.steps)
        check_own_monitor(experiment, stages.computation.steps)
        return Run(
            stage,
            hooks,
            at,
            stages,
            limits=replace(self.limits, began=at.step),
            guard=guard,
            validation=self.validation,
            epoch=self.saved and self.saved.state_of(at),
        )

    @property
    def start(self) -> Record:
        """The moment at which a new run starts."""
        saved = {} if self.saved is None else self.saved.hyperparameters
        return Record(
            mode="train",
            num_epochs=self.limits.num_epochs,
            steps_per_epoch=self.source.length,
            has_validation=self.validation is not None,
            hyperparameters=saved if self.hyperparameters is None else self.hyperparameters,
        )

    def described(self, computation: Computation) -> dict[str, Any]:
        """The run as its folder describes it, after `run`; the names of `RunInfo`."""
        validation, devices = self.validation, computation.topology
        parent = computation.about.parent
        return {
            "max_steps": self.limits.max_steps,
            "computation": computation.note(),
            "data": {
                "identity": self.source.identity,
                "validation": None if validation is None else validation.source.identity,
            },
            "parent": None if parent is None else asdict(parent),
            "devices": f"{devices['words']} of kind {devices['kind']}",
        }

    def _try_validation(
        self, source: Source, training: Stage, stages: Stages, hooks: Hooks
    ) -> None:
        """Traces the validation, so that its errors come before any training.

        With `sanity_val_batches` it evaluates this number of batches, unseen by callbacks.
        """
        epoch = 0 if self.saved is None else self.saved.epoch(self.start, self.limits)
        stage = stages.validation(source, training.stepper, hooks, epoch)
        # An iterator cannot be read again.
        if self.sanity_val_batches is not None and not source.is_iterator:
            at = Record(mode="val", epoch=epoch)
            limits = Limits(max_steps=self.sanity_val_batches)
            evaluate(Run(stage, Hooks([], "val"), at, stages, limits=limits))
        stage.stepper.return_state()
