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
from solstice._loop import Caveats, refused, saved_before
from solstice._options import Options
from solstice._own_history import own_history
from solstice._record import Snapshot
from solstice._runs import Runs
from solstice._session import Session
from solstice._sources import needs_batch_size
from solstice._traces import Trace
from solstice._types import Dataset
from solstice.checkpoint import CheckpointError
from solstice.runs._info import find
from solstice.runs._verify import Verify, trace_of

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
    ends with the step, its `epoch_step` has run. If the folder has a trace, by
    `solstice.callbacks.Trace`, each replayed step is compared with it.

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
            the arguments or this machine may compute other numbers than the run, or do so
            according to the trace.
        DataError, ExperimentError: as in `Trainer.fit`.
    """
    check_experiment(experiment)
    place = checkpoint.place(directory, "directory")
    step, save = whole("step", step, 0, "training steps"), switch("save", save)
    given = Given(experiment, train_ds, val_ds, batch_size, mesh, sharding)
    found = replayed(place, given, since=step, step=step)
    if save and found.start < step:
        checkpoint.save(_home(place) / f"step-{step}", found.run.experiment, note=found.run.note)
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
    place: Path, given: Given, *, since: int, step: int, callbacks: Sequence[Callback] = ()
) -> Replayed:
    """A run at a step, replayed from its newest checkpoint at or before the step `since`."""
    home = _home(place)
    _check_reached(home, step)
    needs_val = steps_epochs(given.experiment)
    val_ds = given.val_ds if needs_val else None
    trace = trace_of(home)
    saved = _exact(saved_before(place, since), step, trace, needs_val=needs_val)
    known = saved.position.about.options or {"limit_train_batches": saved.position.steps_per_epoch}
    options = _options(known, given.mesh, given.sharding, has_val=val_ds is not None)
    batch_size = given.batch_size
    if batch_size is None and needs_batch_size(given.train_ds):
        batch_size = known.get("batch_size")
    verify = [] if trace is None else [Verify(trace)]
    session = Session(options, Runs(), [own_history(), *verify, *callbacks], None)
    try:
        run = session.replay(
            given.experiment, given.train_ds, val_ds, saved, step, batch_size=batch_size
        )
    except CheckpointError as error:  # without notes about the Trainer
        raise CheckpointError(*error.args) from None
    return Replayed(run, saved.position.step, options, batch_size)


def _home(place: Path) -> Path:
    """The folder of a run, of which a checkpoint may be given."""
    return place.parent if checkpoint.exists(place) else place


def _check_reached(folder: Path, step: int) -> None:
    """Raises a CheckpointError if the run has ended before the step."""
    info = None
    with suppress(CheckpointError):  # of a damaged file
        info = find(folder)
    is_over = info is not None and (info.ended or "").startswith(("finished", "stopped"))
    if info is not None and is_over and step > info.step:
        raise CheckpointError(
            f"{folder} has no step {step:,}: the run ended after step {info.step:,} ({info.ended})"
        )


def _exact(saved: "SavedRun", step: int, trace: Trace | None, *, needs_val: bool) -> "SavedRun":
    """The saved run, which refuses a replay that may compute other numbers."""
    position = saved.position
    if not needs_val:  # it does not change the Experiment
        position = replace(position, data={**position.data, "validation": None})
    refuse = refused(f"step {step:,} of {saved.path}", is_start=saved.is_start)
    is_verified = trace is not None and any(step in each.state_steps for each in trace.segments)

    def judge(caveats: Caveats) -> None:
        # Whether this machine computes the same numbers each time, the trace shows.
        refuse(replace(caveats, machine=[]) if is_verified else caveats)

    return replace(saved, position=position, judge=judge)


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
