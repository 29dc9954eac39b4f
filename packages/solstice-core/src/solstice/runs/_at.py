"""`at`: the Experiment at any step of a run, by an exact replay."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from solstice import checkpoint
from solstice._arguments import switch, whole
from solstice._callback import Callback
from solstice._engine import MeshLike, Sharding
from solstice._experiment import Experiment, check_experiment, steps_epochs
from solstice._loop import refused, saved_before
from solstice._options import Options
from solstice._own_history import own_history
from solstice._record import Snapshot
from solstice._runs import Runs
from solstice._session import Session
from solstice._types import Dataset
from solstice.checkpoint import CheckpointError
from solstice.runs._info import find

if TYPE_CHECKING:
    from solstice._loop import SavedRun

_E = TypeVar("_E", bound=Experiment)

_OPTIONS = (
    "limit_train_batches",
    "limit_val_batches",
    "val_every_n_steps",
    "overfit_batches",
    "steps_per_call",
)


def at(
    directory: str | PathLike[str],
    *,
    step: int,
    experiment: _E,
    train_ds: Dataset,
    val_ds: Dataset = None,
    batch_size: int | None = None,
    save: bool = False,
    mesh: MeshLike | None = None,
    sharding: Sharding = "replicated",
) -> _E:
    """`exp = solstice.at("runs/a", step=137, experiment=make(), train_ds=train_ds)`: step 137.

    It has the bits that the run had after 137 training steps, with which step 138 starts. The run
    is replayed from its newest checkpoint at or before the step, or from its start. If an epoch
    ends with the step, its `epoch_step` has run.

    Args:
        directory: the folder of the run, in which `solstice.callbacks.Checkpoint` saved, or one of
            its checkpoints.
        step: number of training steps, 0 or more.
        experiment: an Experiment made in the same way as that of the run; it is not changed.
        train_ds: the data set of the run, as given to `fit`.
        val_ds: its validation set, for an Experiment whose `epoch_step` needs its metrics.
        batch_size: as given to `fit`; by default the number that the run had.
        save: write the checkpoint `step-137` into the folder, from which `fit(resume=...)` can
            continue. It is not removed when the run saves others.
        mesh: the devices, as given to the Trainer of the run.
        sharding: how the Experiment lies on them, as given to that Trainer.

    Returns:
        The Experiment after the step.

    Raises:
        CheckpointError: the folder has no checkpoint of a run, the run ends before the step, or
            what is given, or this machine, may compute other numbers than the run.
        DataError, ExperimentError: as in `Trainer.fit`.
    """
    check_experiment(experiment)
    folder = checkpoint.place(directory, "directory")
    step, save = whole("step", step, 0, "training steps"), switch("save", save)
    given = Given(experiment, train_ds, val_ds, batch_size, mesh, sharding)
    found = replayed(folder, given, since=step, step=step)
    if save and found.start < step:
        checkpoint.save(folder / f"step-{step}", found.run.experiment, note=found.run.note)
    return cast("_E", found.run.experiment)


@dataclass(frozen=True)
class Given:
    """What a user gives for a replay; see `at`."""

    experiment: Experiment
    train_ds: Dataset
    val_ds: Dataset
    batch_size: int | None
    mesh: MeshLike | None
    sharding: Sharding


@dataclass(frozen=True)
class Replayed:
    """A run at a step, by a replay.

    Attributes:
        run: the run after the step.
        start: the step of the checkpoint from which it was replayed.
        options, batch_size: those of the run.
    """

    run: Snapshot
    start: int
    options: Options
    batch_size: int | None


def replayed(
    folder: Path, given: Given, *, since: int, step: int, callbacks: Sequence[Callback] = ()
) -> Replayed:
    """A run at a step, replayed from its newest checkpoint at or before the step `since`."""
    _check_reached(folder, step)
    needs_val = steps_epochs(given.experiment)
    val_ds = given.val_ds if needs_val else None
    saved = _exact(saved_before(folder, since), step, needs_val=needs_val)
    known = saved.position.about.options or {"limit_train_batches": saved.position.steps_per_epoch}
    options = _options(known, given.mesh, given.sharding, has_val=val_ds is not None)
    batch_size = known.get("batch_size") if given.batch_size is None else given.batch_size
    run = Session(options, Runs(), [own_history(), *callbacks], None).replay(
        given.experiment, given.train_ds, val_ds, saved, step, batch_size=batch_size
    )
    return Replayed(run, saved.position.step, options, batch_size)


def _check_reached(folder: Path, step: int) -> None:
    """Raises a CheckpointError if the run has ended before the step."""
    info = None
    with suppress(CheckpointError):  # of a damaged file
        info = find(folder.parent if checkpoint.exists(folder) else folder)
    is_over = info is not None and (info.ended or "").startswith(("finished", "stopped"))
    if info is not None and is_over and step > info.step:
        raise CheckpointError(
            f"{folder} has no step {step:,}: the run ended after step {info.step:,} ({info.ended})"
        )


def _exact(saved: "SavedRun", step: int, *, needs_val: bool) -> "SavedRun":
    """The saved run, which refuses a replay that may compute other numbers."""
    position = saved.position
    if not needs_val:  # it does not change the Experiment
        position = replace(position, data={**position.data, "validation": None})

    what = f"step {step:,} of {saved.path}"
    return replace(saved, position=position, judge=refused(what, is_start=saved.is_start))


def _options(
    known: Mapping[str, Any], mesh: MeshLike | None, sharding: Sharding, *, has_val: bool
) -> Options:
    """The options of the run, of those that change its batches or its schedule."""
    read = {name: known.get(name) if has_val or "val_" not in name else None for name in _OPTIONS}
    return Options.of(
        prefetch=0,
        fast_dev_run=False,
        mesh=mesh,
        sharding=sharding,
        val_confidence=None,
        sanity_val_batches=None,
        **read,
    )
