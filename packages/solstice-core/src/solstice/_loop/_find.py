"""Which saved run a new one continues: that of a path, of a run folder, or of a Saver."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

from solstice import checkpoint
from solstice._callback import Callback
from solstice._console import say_once
from solstice._experiment import Experiment
from solstice._loop._resume import SavedRun
from solstice._loop._snapshot import Position
from solstice._saver import Saver
from solstice._schema import SchemaError, read
from solstice.checkpoint import CheckpointError, Folder, of_newest_run, read_rows


def find_saved(
    resume: str | PathLike[str] | SavedRun, callbacks: Sequence[Callback]
) -> SavedRun | None:
    """The saved run to continue; None to start a new run."""
    if isinstance(resume, SavedRun):
        return resume
    if not isinstance(cast("Any", resume), str | PathLike):
        raise TypeError(f'resume must be "last", "best" or a path; it is {resume!r:.60}')
    path: Path | None = checkpoint.place(resume, "resume")
    if resume in ("last", "best"):
        path = _asked(cast("Literal['last', 'best']", resume), callbacks)
        if path is None:
            return None
    return read_saved(newest_in(path))


def newest_in(folder: Path) -> Path:
    """The newest checkpoint of a run folder; a folder that is a checkpoint is its own newest.

    If `Checkpoint` has not saved there, it is that of the highest step, such as the start of a
    branch.
    """
    if checkpoint.exists(folder):
        return folder
    own = of_newest_run(Folder(folder).saved(strict=True))
    found = {} if own else _steps_in(folder)
    return own[-1].path if own else found[max(found)] if found else folder


def _steps_in(folder: Path) -> dict[int, Path]:
    """The checkpoints of the newest run in a folder by step, also those of `at(save=True)`."""
    own = of_newest_run(Folder(folder).saved(strict=True))
    found = {_step_of(saved.path): saved.path for saved in own}
    newest = _run_of(own[-1].path) if own else None
    for path in Folder(folder).others():
        run = _run_of(path)
        # It may be of a run that this one has overwritten, or of no run.
        if run is not None and newest in (None, run):
            found[_step_of(path)] = path
    return found


def _run_of(path: Path) -> str | None:
    """The id of the run of a checkpoint; None if it is not of a run."""
    _, position = _read(path, lambda _: [])
    return None if position is None else position.about.id


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def find_before(folder: Path, step: int) -> SavedRun:
    """The newest saved run of a folder at or before a step; see `saved_before`."""
    if checkpoint.exists(folder):
        there = {(saved := read_saved(folder)).position.step: saved.path}
    else:
        there = _steps_in(folder)
    before = [number for number in there if number <= step]
    if before:
        return read_saved(there[max(before)])
    if not there:
        raise CheckpointError(
            f"{folder} has no checkpoint of a run: give the folder of a run with "
            f"`solstice.callbacks.Checkpoint({str(folder)!r})` among its callbacks"
        )
    later = read_saved(there[min(there)])
    parent = later.position.about.parent
    if parent is not None:
        raise CheckpointError(
            f"{folder} starts at step {parent.step:,} of {parent.folder}, which has step {step:,}: "
            f"write `solstice.at({parent.folder!r}, step={step}, ...)`"
        )
    return replace(later, path=folder, position=later.position.at_start(), state=_itself)


def _itself(experiment: Experiment) -> Experiment:
    return experiment


def read_saved(path: Path) -> SavedRun:
    """The saved run in a checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or it is not one of a run.
    """
    manifest, position = _read(path, lambda about: read_rows(path, about))
    if position is None:
        raise CheckpointError(
            f"{path} is not a checkpoint of a run that this version of Solstice can continue. For "
            f"its weights alone write `exp = solstice.checkpoint.load({str(path)!r}, like=exp)`"
        )
    given = manifest["note"].get("hyperparameters", {})  # of a snapshot by hand, maybe none
    return SavedRun(path, position, manifest["versions"], given)


def newest_of(savers: Sequence[Saver]) -> Path | None:
    """The newest checkpoint that the Savers find; None if there is none."""
    found = _found("last", savers) if savers else []
    return max(dict.fromkeys(found), key=_moment, default=None)


def _asked(which: Literal["last", "best"], callbacks: Sequence[Callback]) -> Path | None:
    """The checkpoint that the Savers among the callbacks find; None if there is none."""
    savers = [callback for callback in callbacks if isinstance(callback, Saver)]
    if not savers:
        raise ValueError(
            f"resume={which!r} asks a Checkpoint callback, and there is none: write "
            f"`Trainer([solstice.callbacks.Checkpoint('runs/a')])`, or give the path of a "
            f"checkpoint. A callback of your own that saves is a `solstice.callbacks.Saver`"
        )
    # Two Savers may find the same folder.
    found = list(dict.fromkeys(_found(which, savers)))
    if not found:
        those = " and ".join(map(repr, savers))
        have = "has" if len(savers) == 1 else "have"
        say_once(f"{those} {have} nothing saved: starting a new run")
        return None
    if which == "best" and len(found) > 1:
        lines = " or ".join(f"`resume={str(path)!r}`" for path in found)
        raise ValueError(
            f"resume='best' has {len(found)} answers, as several callbacks compare: write {lines}"
        )
    return found[0] if len(found) == 1 else max(found, key=_moment)


def _found(which: Literal["last", "best"], savers: Sequence[Saver]) -> list[Path]:
    """The checkpoints that the Savers find."""
    found: list[Path] = []
    unknowing: list[ValueError] = []
    for saver in savers:
        try:
            path = saver.find(which)
        except ValueError as error:  # a Saver that does not compare runs; another may
            unknowing.append(error)
            continue
        found += [] if path is None else [path]
    if len(unknowing) == len(savers):
        raise unknowing[0]
    return found


def _moment(path: Path) -> tuple[float, int]:
    """The time at which a run was saved, and its step, for choosing the newest."""
    # Without the rows of the history, which may be many.
    _, position = _read(path, lambda _: [])
    return (0.0, 0) if position is None else (position.saved_at, position.step)


def _read(path: Path, rows: Callable[[Any], list[Any]]) -> tuple[dict[str, Any], Position | None]:
    manifest = checkpoint.manifest(path)
    try:
        read(dict[str, Any], manifest["note"].get("hyperparameters", {}), "note['hyperparameters']")
        return manifest, Position.of(manifest["note"], rows)
    except SchemaError as error:
        raise CheckpointError(f"{path / 'manifest.json'}: {error}") from error
