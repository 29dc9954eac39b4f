"""RunKeeper: the callback of the Trainer that keeps `run.json` in the folders of a run."""

import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from solstice import checkpoint
from solstice._callback import Callback, Phase
from solstice._console import warn
from solstice._paths import free_name
from solstice._record import Record, Stop
from solstice._worker import Worker
from solstice.checkpoint import CheckpointError
from solstice.history import History
from solstice.runs._best import Bests
from solstice.runs._facts import facts
from solstice.runs._info import FILE, RunInfo, find, write

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
    """

    every = None
    modes = ("train",)
    phase = Phase.SAVE
    can_stop = False
    waits_for_device = False
    has_side_effects = True
    processes = "first"

    def __init__(self, callbacks: Sequence[Callback], history: History) -> None:
        self._callbacks = callbacks
        self._history = history
        self._files: list[_File] = []
        self._info: RunInfo | None = None
        self._hooks: Stopping | None = None
        self._worker = Worker("solstice-run")
        self._bests = Bests()
        self._at = 0.0
        self._has_warned = False

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
        folders = [c.run_folder for c in self._callbacks if c.run_folder is not None]
        places = dict.fromkeys(map(checkpoint.absolute, folders))
        self._files = [_File(folder, saved) for folder in places]
        self._write(record, None)

    def on_epoch_end(self, record: Record) -> None:
        """Writes the files, if the newest write is a second old."""
        if time.monotonic() - self._at >= _SECONDS:
            self._write(record, None)

    def on_fit_end(self, record: Record) -> None:
        """Writes how the run has ended."""
        stop = self._hooks and self._hooks.stop
        self._end(record, "finished" if stop is None else f"stopped: {stop}")

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Writes how the run has ended."""
        is_asked = isinstance(error, KeyboardInterrupt | SystemExit)
        failed = f"failed: {type(error).__name__}: {error!s:.500}".rstrip(": ")
        self._end(record, "interrupted" if is_asked else failed)

    def _write(self, record: Record, ended: str | None) -> None:
        if self._info is None:  # a run that failed before `begin`
            return
        with self._warned():
            self._bests.add(self._history.rows)
        info = self._info = replace(
            self._info,
            updated_at=time.time(),
            ended=ended,
            step=record.step,
            epoch=record.epoch,
            metrics={name: {**values} for name, values in self._bests.found.items()},
        )
        self._at = time.monotonic()
        for file in self._files:
            with self._warned():
                self._worker.submit(file.write, info)

    def _end(self, record: Record, ended: str) -> None:
        self._write(record, ended)
        with self._warned():
            self._worker.close()
        self._info, self._hooks, self._files = None, None, []

    @contextmanager
    def _warned(self) -> Generator[None, None, None]:
        """Within, an error becomes a warning, once per run."""
        try:
            yield
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                warn(f"{FILE}, which describes the run, is not up to date: {error}", stacklevel=6)


class _File:
    """`run.json` in one folder. Its methods run in the thread.

    Args:
        folder: the folder, absolute.
        saved: the checkpoint that is resumed, or None.
    """

    def __init__(self, folder: Path, saved: Path | None) -> None:
        self._folder = folder
        is_here = saved is not None and checkpoint.absolute(saved).parent == folder
        self._continues = is_here
        self._started: dict[str, Any] | None = None
        self._is_lost = False

    def write(self, info: RunInfo) -> None:
        """Writes the file, unless another run has taken the folder.

        Raises:
            CheckpointError: it has.
        """
        if self._started is None:
            self._started = self._start(info)
        elif not self._is_lost:
            self._check(self._started["id"])
        if not self._is_lost:
            write(self._folder, replace(info, **self._started))

    def _start(self, info: RunInfo) -> dict[str, Any]:
        """What only this file has: the facts, and the start of the run that it continues."""
        mine = {"id": info.id, **facts()}
        if not checkpoint.is_url(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        before = None
        with suppress(CheckpointError):  # a damaged file, or of another program, is set aside
            before = find(self._folder)
        if before is not None and self._continues:
            return {
                **mine,
                "id": before.id,
                "started_at": before.started_at,
                "parent": info.parent or before.parent,
            }
        self._set_aside()
        return mine

    def _set_aside(self) -> None:
        """Renames the file of an earlier run, such as to `run-1.json`, as loggers do."""
        path = self._folder / FILE
        if not checkpoint.is_url(path) and path.exists():
            path.rename(free_name(path))

    def _check(self, own: str) -> None:
        there = find(self._folder)
        if there is not None and there.id != own:
            self._is_lost = True
            raise CheckpointError(
                f"another run writes {self._folder / FILE} too. Give each run a folder of its own, "
                f"such as {str(self._folder / 'a')!r}"
            )
