"""Saving: the checkpoints of one run, written in a thread, and which of them are kept."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from solstice import checkpoint
from solstice._monitor import Monitor
from solstice._record import Record, Snapshot
from solstice._worker import Worker
from solstice.callbacks._lock import FolderLock
from solstice.checkpoint import Folder, Saved, of_newest_run

_HELD_BYTES = 2**26
"""The largest state of which a copy is held, so that a thread can write it while training goes on.
The arrays of a larger one are written before the next step."""


@dataclass(frozen=True)
class Retention:
    """`Retention(keep=2, keep_best=1, monitor=None)`: the checkpoints that a run keeps.

    Attributes:
        keep: number of newest ones.
        keep_best: number of best ones in addition.
        monitor: the metric that ranks them; None for no ranking.
    """

    keep: int
    keep_best: int
    monitor: Monitor | None

    def best_first(self, saved: list[Saved]) -> list[Saved]:
        """The checkpoints with a value of this monitor, best first; ties in order of writing."""
        if self.monitor is None:
            return []
        name, rank = self.monitor.monitor, self.monitor.rank
        valued = [(s.value, s) for s in saved if s.value is not None and s.monitor == name]
        return [s for _, s in sorted(valued, key=lambda pair: (rank(pair[0]), pair[1].serial))]

    def kept(self, saved: list[Saved]) -> set[Saved]:
        """The newest and the best of the checkpoints of a run, which are given oldest first."""
        return {*saved[-self.keep :], *self.best_first(saved)[: self.keep_best]}


class Saving:
    """`Saving(folder, lock, retention, record)`: save one run into a folder, until `close`.

    Args:
        folder: the folder.
        lock: the lock of the folder, which `close` closes; None in all but the first process.
        retention: which checkpoints to keep.
        record: the record of `on_fit_start`. A run from step 0 overwrites earlier ones.
    """

    def __init__(
        self, folder: Folder, lock: FolderLock[Any] | None, retention: Retention, record: Record
    ) -> None:
        there = [] if lock is None else folder.saved()
        self._folder, self._lock, self._retention = folder, lock, retention
        self._worker = Worker("solstice-checkpoint")
        self._serial = there[-1].serial + 1 if there else 0
        self._first = there[-1].first if there and record.step > 0 else self._serial
        self._measured: tuple[int, float] | None = None
        self._saved_at: tuple[int, int] | None = None
        self._latest = time.monotonic()

    @property
    def seconds(self) -> float:
        """The time since the newest checkpoint, or since the start."""
        return time.monotonic() - self._latest

    def of_this_run(self, saved: list[Saved]) -> list[Saved]:
        """The checkpoints of this run, oldest first."""
        return of_newest_run(saved, self._first)

    def measure(self, record: Record) -> None:
        """Reads the monitored metric at the end of an epoch, for a checkpoint of the same step."""
        monitor = self._retention.monitor
        value = None if monitor is None else monitor.value(record)
        if value is not None:
            self._measured = record.step, value

    def save(self, record: Record, *, is_closed: bool) -> None:
        """Submits a snapshot to the thread, after the write before it.

        Args:
            record: the moment to save.
            is_closed: whether its epoch has ended.
        """
        moment = record.step, int(is_closed)
        # Two conditions may ask for the same step, such as `every` and `minutes`.
        if self._saved_at is not None and moment <= self._saved_at:
            return
        # A snapshot is a copy of the state until its arrays are written; two would be twice that.
        self._worker.wait()
        at, value = self._measured or (None, None)
        snapshot = record.snapshot
        begin = partial(self._begin, snapshot, record.step, value if at == record.step else None)
        peers = checkpoint.Peers(f"{self._folder.path} is cleaned up")
        # Several processes begin where all have done the same steps.
        if peers.is_alone and _nbytes(snapshot.experiment) <= _HELD_BYTES:
            self._worker.submit(lambda: self._finish(begin(), peers))
        else:
            self._worker.submit(self._finish, begin(), peers)
        self._saved_at, self._latest = moment, time.monotonic()

    def _begin(self, snapshot: Snapshot, step: int, value: float | None) -> Callable[[], Path]:
        """Writes the arrays of a checkpoint; the result writes the rest."""
        self._check_lock()
        monitor = self._retention.monitor
        about = {
            "serial": self._serial,
            "first": self._first,
            # Not as a number, because JSON has no infinity.
            "value": None if value is None or math.isnan(value) else value.hex(),
            "monitor": None if monitor is None else monitor.monitor,
        }
        note = {**snapshot.note, "checkpoint": about}
        path = self._folder.path / f"step-{step}"
        return checkpoint.begin(path, snapshot.experiment, note=note)

    def _finish(self, finish: Callable[[], Path], peers: checkpoint.Peers) -> None:
        """Completes a checkpoint and removes old ones; runs in the thread."""
        finish()
        self._serial += 1
        peers.first(self._remove_old)

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def _remove_old(self) -> None:
        self._check_lock()
        there = self._folder.saved()
        own = self.of_this_run(there)
        # Those of an overwritten run too: this run now has a checkpoint of its own.
        kept = self._retention.kept(own)
        for saved in there:
            # A link means that the user has moved the checkpoint, so only `overwrite` removes it.
            if saved not in kept and (saved not in own or not saved.is_link):
                checkpoint.remove_alone(saved.path)

    def wait(self) -> None:
        """Waits for the current write, and raises its error."""
        self._worker.wait()

    def close(self) -> None:
        """Waits for the last write, raises its error, and releases the folder."""
        try:
            self._worker.close()
        finally:  # after the last write, because the next owner removes half-written checkpoints
            if self._lock is not None:
                self._lock.close()


def _nbytes(tree: object) -> int:
    return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(tree))
