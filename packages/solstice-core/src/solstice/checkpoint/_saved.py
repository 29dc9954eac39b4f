"""The list of checkpoints in a folder, with their order and monitored values."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solstice._errors import CheckpointError
from solstice._schema import read
from solstice.checkpoint import _bucket
from solstice.checkpoint._folder import exists, sweep_alone
from solstice.checkpoint._load import manifest

_STEP = re.compile(r"step-[0-9]+")  # not a user's copy, such as `step-2-keep`
_LEFT = re.compile(r"\.(step-[0-9]+)\.(new|old)(-[0-9]+)?")


@dataclass(frozen=True)
class _About:
    serial: int
    value: str | None
    monitor: str | None
    first: int = 0


@dataclass(frozen=True)
class Saved:
    """A checkpoint in a folder, with its place in the order of writing.

    Attributes:
        path: its folder, or a link to it.
        serial: its number in the order of writing. Steps would not do, because a run that
            overwrites another starts again from step 0.
        first: the serial of the first checkpoint of its run; lower serials are of overwritten runs.
        value: the value of the monitored metric, or None.
        monitor: the name of this metric with its mode, or None.
    """

    path: Path
    serial: int
    first: int
    value: float | None
    monitor: str | None

    @property
    def is_link(self) -> bool:
        """Whether the path is a link; a bucket has none."""
        return not _bucket.is_url(self.path) and self.path.is_symlink()

    @staticmethod
    def of(path: Path) -> "Saved | None":
        """The checkpoint at a path; None if it was not written by `Checkpoint`.

        Raises:
            CheckpointError: its manifest is damaged.
        """
        about = manifest(path)["note"].get("checkpoint")
        if about is None:
            return None
        try:
            found = read(_About, about, "note['checkpoint']")
            value = None if found.value is None else float.fromhex(found.value)
        except ValueError as error:
            raise CheckpointError(f"{path / 'manifest.json'}: {error}") from error
        return Saved(path, found.serial, found.first, value, found.monitor)


class Folder:
    """`Folder(path).saved()`: the checkpoints among all files of a folder.

    They are folders `step-<digits>` with a manifest of `Checkpoint`, and links to such.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[Any, Saved | None] = {}

    def saved(self, *, strict: bool = False) -> list[Saved]:
        """The checkpoints, oldest first; damaged ones are skipped, or raise if `strict`.

        Those that a bucket does not give raise: they may be whole.
        """
        known: dict[Any, Saved | None] = {}
        for name in self._step_names():
            key = _identity(self.path, name)
            try:
                known[key] = self._known[key] if key in self._known else self._read(name)
            except CheckpointError as error:
                if strict or isinstance(error, _bucket.BucketError):
                    raise
        # Manifests are cached by size and time, because reading all of them at each save is slow.
        self._known = {key: saved for key, saved in known.items() if key[1:]}
        found = [saved for saved in known.values() if saved is not None]
        return sorted(found, key=lambda saved: saved.serial)

    def others(self) -> list[Path]:
        """The folders named like checkpoints that `Checkpoint` did not write."""
        own = {saved.path for saved in self.saved(strict=True)}
        paths = (self.path / name for name in self._step_names())
        return [path for path in paths if path not in own and exists(path)]

    def _read(self, name: str) -> Saved | None:
        path = self.path / name
        return Saved.of(path) if exists(path) else None

    def settle(self) -> None:
        """Completes or removes half-written checkpoints; call it only with the folder's lock."""
        is_url, names = _bucket.is_url(self.path), self._names()
        sweep_alone(self.path, _steps(names) if is_url else _left(names))

    def has_left(self) -> bool:
        """Whether there are half-written checkpoints."""
        return bool(_left(self._names()))

    def _names(self) -> list[str]:
        if _bucket.is_url(self.path):
            return _bucket.names_in(self.path)
        return os.listdir(self.path) if self.path.is_dir() else []

    def _step_names(self) -> list[str]:
        names = self._names()
        return sorted(_steps(names) | _left(names))


def of_newest_run(saved: list[Saved], first: int = 0) -> list[Saved]:
    """The checkpoints, oldest first, without those of an overwritten run.

    Args:
        saved: all checkpoints of a folder; those of an overwritten run may not be removed yet.
        first: the serial of the first checkpoint of a run that saves now.
    """
    first = max([first, *(s.first for s in saved[-1:])])
    return [s for s in saved if s.serial >= first]


def _steps(names: list[str]) -> set[str]:
    return {name for name in names if _STEP.fullmatch(name)}


def _left(names: list[str]) -> set[str]:
    """The names of checkpoints that a process may have left half-written."""
    return {match[1] for name in names if (match := _LEFT.fullmatch(name))}


def _identity(folder: Path, name: str) -> tuple[Any, ...]:
    """Path, inode, time and size of a manifest; the path alone if there is no manifest."""
    path = f"{folder}/{name}"
    if _bucket.is_url(folder):
        newest = _bucket.newest_version(folder / name)
        return (path,) if newest is None else (path, newest.name)
    try:
        found = os.stat(f"{path}/manifest.json")
    except OSError:  # a process died while it replaced the checkpoint
        return (path,)
    return path, found.st_ino, found.st_mtime_ns, found.st_size
