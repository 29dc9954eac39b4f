"""RunKeeper: the callback of the Trainer that keeps `run.json` in the folders of a run."""

import math
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from solstice import checkpoint
from solstice._callback import Callback, Phase
from solstice._console import warn
from solstice._record import Record, Stop
from solstice._worker import Worker
from solstice.history import History
from solstice.runs._best import Bests
from solstice.runs._files import Files
from solstice.runs._info import FILE, RunInfo

_SECONDS = 1.0
"""The shortest time between two writes, because epochs may take milliseconds."""


class Stopping(Protocol):
    """The hooks of a run, with its first request to stop."""

    @property
    def stop(self) -> Stop | None: ...


class RunKeeper(Callback):
    """`RunKeeper(callbacks, history)`: keep `run.json` in each folder of a run.

    A thread writes, and an error there is a warning: it never ends the run.

    Args:
        callbacks: the callbacks of the run, whose `run_folder` are the folders.
        history: the history of the run, for the newest and the best metrics.
        folder: another folder of the run, or None.
    """

    every = None
    modes = ("train", "val")  # because one epoch may be the whole run
    phase = Phase.SAVE
    can_stop = False
    waits_for_device = False
    has_side_effects = True
    processes = "first"

    def __init__(
        self, callbacks: Sequence[Callback], history: History, folder: Path | None = None
    ) -> None:
        self._callbacks = list(callbacks)
        self._folder = folder
        self._history = history
        self._files: Files | None = None
        self._info: RunInfo | None = None
        self._hooks: Stopping | None = None
        self._worker = Worker("solstice-run")
        self._bests = Bests()
        self._at = 0.0
        self._errors: list[Exception] = []
        self._has_warned = False

    @contextmanager
    def tried(self) -> Generator[None, None, None]:
        """Within, an error becomes a warning: also the data set of a user may raise one."""
        try:
            yield
        except Exception as error:
            self._errors.append(error)
            self._warn()

    def begin(
        self, record: Record, saved: Path | None, hooks: Stopping, about: Mapping[str, Any]
    ) -> None:
        """Writes the files for the first time, after `on_fit_start`.

        Args:
            record: the first moment of the run.
            saved: the checkpoint that is resumed, or None.
            hooks: has the request to stop, for the end of the run.
            about: fields of `RunInfo`.
        """
        now = time.time()
        self._info = RunInfo(
            id=uuid.uuid4().hex[:12],
            hyperparameters=dict(record.hyperparameters),
            started_at=now,
            updated_at=now,
            ended=None,
            step=record.step,
            epoch=record.epoch,
            num_epochs=record.num_epochs,
            **about,
        )
        self._hooks = hooks
        # Absolute, because the working directory may change. After `on_fit_start`, which sets it.
        given = [self._folder, *(callback.run_folder for callback in self._callbacks)]
        folders = [checkpoint.place(f, "run_folder") for f in given if f is not None]
        self._files = Files(list(dict.fromkeys(map(checkpoint.absolute, folders))), saved)
        self._write()
        self._at = -math.inf  # so that a run of a second has the metrics of an epoch
        self._warn()

    def on_epoch_end(self, record: Record) -> None:
        """Writes the files after an epoch or a validation, if they are a second old."""
        if time.monotonic() - self._at >= _SECONDS:
            self._write(step=record.step, epoch=record.epoch)
            self._warn()

    def on_fit_end(self, record: Record) -> None:
        """Writes how the run has ended."""
        stop = self._hooks and self._hooks.stop
        self._end(record, "finished" if stop is None else f"stopped: {stop}".rstrip(": "))

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Writes how the run has ended."""
        is_asked = isinstance(error, KeyboardInterrupt | SystemExit)
        failed = f"failed: {type(error).__name__}: {error!s:.500}".rstrip(": ")
        self._end(record, "interrupted" if is_asked else failed)

    def note_evaluation(self) -> None:
        """Adds the metrics of an evaluation after the run."""
        if self._hooks is None:
            self._finish()

    def _end(self, record: Record, ended: str) -> None:
        self._hooks = None
        self._finish(ended=ended, step=record.step, epoch=record.epoch)

    def _finish(self, **changed: Any) -> None:
        self._write(**changed)
        self._worker.close()
        self._warn()

    def _write(self, **changed: Any) -> None:
        """Has the thread write the files, with these fields of `RunInfo`."""
        if self._info is None or self._files is None:  # a run that failed before `begin`
            return
        now, metrics = time.time(), self._metrics()
        self._info = replace(self._info, updated_at=now, metrics=metrics, **changed)
        self._at = time.monotonic()
        self._worker.submit(self._try, self._files, self._info)

    def _metrics(self) -> dict[str, dict[str, float]]:
        try:
            self._bests.add(self._history.rows)
        except Exception as error:  # of a metric, which the run has not read
            self._errors.append(error)
        return {name: {**values} for name, values in self._bests.found.items()}

    def _try(self, files: Files, info: RunInfo) -> None:
        """Writes the files; in the thread, where a warning has no line to point at."""
        try:
            files.write(info)
        except Exception as error:
            self._errors.append(error)

    def _warn(self) -> None:
        if self._errors and not self._has_warned:
            self._has_warned = True
            error = self._errors[0]
            warn(f"{FILE}, which describes the run, is not up to date: {error}", stacklevel=2)
