"""RunInfo: what the file `run.json` in the folder of a run says."""

import json
import os
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np

from solstice import _schema, checkpoint
from solstice._paths import check_regular
from solstice.checkpoint import CheckpointError

FILE = "run.json"
_FORMAT, _VERSION = "solstice-run", 1


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """`solstice.runs.read("runs/a").hyperparameters`: what `run.json` says about a run.

    The Trainer writes it at the start of a run, at the end of epochs, and at the end of the run.

    Attributes:
        id: random text; a resumed run in the same folder keeps it.
        hyperparameters: those of the Trainer, as values of JSON.
        started_at: the time of the first step, in seconds since 1970; of a resumed run that of the
            original one.
        updated_at: the time of the newest write.
        ended: None until the run ends; then "finished", "stopped: <reason>" by a callback,
            "interrupted" by Ctrl-C or a signal, or "failed: <error>". A killed run stays at None.
        step, epoch: the newest moment, as in `solstice.Record`.
        num_epochs, max_steps: the arguments of `fit`.
        options: the arguments of the Trainer and of `fit` that change the batches or the schedule,
            such as "limit_train_batches" and "batch_size".
        metrics: for each scalar metric of the history, such as "val/accuracy", the values "newest"
            and "best", and "best_epoch". Of a population, these are of the best member.
        computation: digests of the steps, the initial scalars of the Experiment, and the devices,
            as a resumed run compares them.
        data: "identity" of the training set and "validation", as a resumed run compares them.
        versions: the versions of Python and of the packages.
        devices: the devices, in words.
        platform: the operating system.
        process: "pid" and "host" of the process that writes.
        git: "commit" and "is_dirty" of the folder of the script; None outside of git. Only changes
            of tracked files count, and `is_dirty` is None if git did not answer.
        command: the command line.
        parent: None; of a branch, the "folder" and the "step" at which it left the parent, and the
            "changes", in words.
    """

    id: str
    hyperparameters: dict[str, Any]
    started_at: float
    updated_at: float
    ended: str | None
    step: int
    epoch: int
    num_epochs: int | None
    max_steps: int | None
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    metrics: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    computation: dict[str, Any] = field(default_factory=dict[str, Any])
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    devices: str = ""
    platform: str = ""
    process: dict[str, str | int] = field(default_factory=dict[str, "str | int"])
    git: dict[str, Any] | None = None
    command: list[str] = field(default_factory=list[str])
    parent: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Head:
    format: str
    version: int


def read(folder: str | PathLike[str]) -> RunInfo:
    """`solstice.runs.read("runs/a").metrics["val/accuracy"]["best"]`: read `run.json`.

    Args:
        folder: the folder of a run, also in a bucket.

    Raises:
        CheckpointError: there is no `run.json`, it is damaged, or it belongs to another program.
    """
    place = checkpoint.place(folder, "folder")
    found = find(place)
    if found is None:
        raise CheckpointError(
            f"{folder} has no {FILE}, so it is not the folder of a run. A run with "
            f"`Checkpoint({str(folder)!r})` among its callbacks writes one"
        )
    return found


def find(folder: Path) -> RunInfo | None:
    """`run.json` in a folder; None if there is none.

    Raises:
        CheckpointError: it is damaged, or belongs to another program.
    """
    path = folder / FILE
    try:
        text = _text(path)
        return None if text is None else _parsed(text)
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _text(path: Path) -> str | None:
    if checkpoint.is_url(path):
        return checkpoint.read_object(path)
    check_regular(path, f"the file {FILE}")
    return path.read_text(encoding="utf-8") if path.exists() else None


def _parsed(text: str) -> RunInfo:
    found = json.loads(text)
    head = _schema.read(_Head, found, FILE)
    if (head.format, head.version) != (_FORMAT, _VERSION):
        raise _schema.SchemaError(
            f"it has the format {head.format!r:.60}, version {head.version}, and this version of "
            f"Solstice reads {_FORMAT!r}, version {_VERSION}"
        )
    return _schema.read(RunInfo, found, FILE)


def write(folder: Path, info: RunInfo) -> None:
    """Writes `run.json`, whole or not at all; the folder exists."""
    about = {"format": _FORMAT, "version": _VERSION, **vars(info)}
    text, path = json.dumps(about, indent=1, default=_plain), folder / FILE
    if checkpoint.is_url(folder):
        checkpoint.write_object(path, text)
        return
    new = folder / f".{FILE}.new"
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def _plain(value: object) -> Any:
    """A number of NumPy for JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return cast("Any", value).tolist()
    return str(value)
