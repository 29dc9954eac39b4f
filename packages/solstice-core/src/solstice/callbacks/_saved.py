"""The checkpoints of runs in a folder, which may hold anything else too."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solstice import checkpoint
from solstice._schema import read
from solstice.checkpoint import CheckpointError

_STEP = re.compile(r"step-[0-9]+")
_LEFT = re.compile(r"\.(step-[0-9]+)\.(new|old)(-[0-9]+)?")


@dataclass(frozen=True)
class _About:
    serial: int
    value: str | None
    monitor: str | None
    first: int = 0


@dataclass(frozen=True)
class Saved:
    """A checkpoint: when in their order it was written, and how good it was.

    Attributes:
        path: its folder, or a link to it.
        serial: its number, in the order of writing.
        first: that of the first of its run; those before are of runs that were overwritten.
        value: of the metric that was monitored, or None.
        monitor: the metric.
    """

    path: Path
    serial: int
    first: int
    value: float | None
    monitor: str | None

    @staticmethod
    def of(path: Path) -> "Saved | None":
        """What is there; None if it is no checkpoint of a run."""
        about = checkpoint.manifest(path)["note"].get("checkpoint")
        if about is None:
            return None
        try:
            found = read(_About, about, "note['checkpoint']")
            value = None if found.value is None else float.fromhex(found.value)
        except ValueError as error:
            raise CheckpointError(f"{path / 'manifest.json'}: {error}") from error
        return Saved(path, found.serial, found.first, value, found.monitor)


class Folder:
    """`Folder(path).saved()`: only `step-<digits>` with a manifest of ours, and links to such."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[Any, Saved | None] = {}

    def saved(self, *, strict: bool = False) -> list[Saved]:
        """The checkpoints, oldest first; a damaged one is passed over, or raised if `strict`."""
        known: dict[Any, Saved | None] = {}
        for name in self._step_names():
            key = _identity(f"{self.path}/{name}")
            try:
                known[key] = self._known[key] if key in self._known else self._read(name)
            except CheckpointError:
                if strict:
                    raise
        # A manifest is read once: looking at one that is known takes a few microseconds.
        self._known = {key: saved for key, saved in known.items() if key[1:]}
        found = [saved for saved in known.values() if saved is not None]
        return sorted(found, key=lambda saved: saved.serial)

    def _read(self, name: str) -> Saved | None:
        path = self.path / name
        return Saved.of(path) if checkpoint.exists(path) else None

    def settle(self) -> None:
        """Ends what processes that died have begun; not while another one writes."""
        checkpoint.sweep(self.path, _left(self._names()))

    def has_left(self) -> bool:
        """Whether there is something to settle."""
        return bool(_left(self._names()))

    def _names(self) -> list[str]:
        return os.listdir(self.path) if self.path.is_dir() else []

    def _step_names(self) -> list[str]:
        names = self._names()
        return sorted({name for name in names if _STEP.fullmatch(name)} | _left(names))


def _left(names: list[str]) -> set[str]:
    """Of which checkpoints something may be left half-written."""
    return {match[1] for name in names if (match := _LEFT.fullmatch(name))}


def _identity(path: str) -> tuple[Any, ...]:
    """Of a manifest as it is now."""
    try:
        found = os.stat(f"{path}/manifest.json")
    except OSError:  # it is beside its name, since a process died
        return (path,)
    return path, found.st_ino, found.st_mtime_ns, found.st_size
