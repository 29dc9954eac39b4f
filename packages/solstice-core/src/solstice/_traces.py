"""Traces: the digests of a run in the folder `trace`, written while it trains.

A segment is a part of a run whose arrays have the same names. It has three files: `from-0.json`
describes it, `from-0.rows` has a row of 32-bit numbers for the batch and the outputs of each step,
and `from-0.state` has a row for the state at each step that is due. Rows are only ever appended,
so a process may be killed at any moment.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from solstice import _schema
from solstice._digests import Digests, Table
from solstice._errors import CheckpointError
from solstice._paths import free_name

FOLDER = "trace"
"""The name of the folder, in the folder of a run."""

_VERSION = 1
_EPOCHS = "epochs.txt"
_TYPE = np.dtype("<u4")


@dataclass(frozen=True)
class Head:
    """The description of a segment.

    Attributes:
        first: the step before its first row.
        every: the state has a row at multiples of it.
        has_start: whether the first row of the state is that of the step `first`.
        names: the columns of the rows.
        state_names: the columns of the rows of the state.
        state_types: the types of these arrays.
    """

    version: int
    first: int
    every: int
    has_start: bool
    names: list[str]
    state_names: list[str]
    state_types: list[str]


class Segment:
    """A segment on the disk.

    Args:
        stem: the path of its files, without the extension.
        head: its description.
    """

    def __init__(self, stem: Path, head: Head) -> None:
        self.stem = stem
        self.head = head

    @staticmethod
    def read(path: Path) -> "Segment":
        """The segment of a file `from-0.json`.

        Raises:
            CheckpointError: it is damaged, or of another version.
        """
        try:
            head = _schema.read(Head, json.loads(path.read_text(encoding="utf-8")), path.name)
            if head.version != _VERSION:
                raise ValueError(f"it has version {head.version}, and this one reads {_VERSION}")
        except (ValueError, OSError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        return Segment(path.with_suffix(""), head)

    @property
    def first(self) -> int:
        """The step before its first row."""
        return self.head.first

    @cached_property
    def rows(self) -> Table:
        """A row for each step after the first."""
        return _table(self.stem.with_suffix(".rows"), len(self.head.names))

    @property
    def last(self) -> int:
        """The step of its last row."""
        return self.first + len(self.rows)

    @cached_property
    def state_rows(self) -> Table:
        """A row for each of `state_steps`."""
        return _table(self.stem.with_suffix(".state"), len(self.head.state_names))

    @cached_property
    def state_steps(self) -> np.ndarray[Any, Any]:
        """The steps at which there is a row of the state."""
        steps = _due(self.head, self.last)
        return steps[: len(self.state_rows)]  # a killed process may have written fewer

    def cut(self, step: int) -> None:
        """Removes the rows after a step."""
        if self.first >= step:
            for suffix in (".json", ".rows", ".state"):
                self.stem.with_suffix(suffix).unlink(missing_ok=True)
            return
        last = min(self.last, step)
        sizes = {
            ".rows": (last - self.first) * len(self.head.names),
            ".state": int(np.sum(self.state_steps <= last)) * len(self.head.state_names),
        }
        for name in ("rows", "state_rows", "state_steps"):  # they are of the file before
            self.__dict__.pop(name, None)
        for suffix, size in sizes.items():
            with self.stem.with_suffix(suffix).open("ab") as file:
                file.truncate(size * _TYPE.itemsize)


class Trace:
    """`Trace(Path("runs/a/trace"))`: the trace of a run on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = [Segment.read(path) for path in folder.glob("from-*.json")]
        self.segments = sorted(found, key=lambda segment: segment.first)

    @property
    def last(self) -> int:
        """The step of the last row."""
        return self.segments[-1].last

    @cached_property
    def epochs(self) -> dict[int, int]:
        """The step before the first one of each epoch."""
        path = self.folder / _EPOCHS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        pairs = [line.split() for line in lines]
        return {int(pair[0]): int(pair[1]) for pair in pairs if len(pair) == 2}

    def moment(self, step: int) -> tuple[int, int] | None:
        """The epoch of a step and the index of its batch, from 0; None if it is not known."""
        begun = [(first, epoch) for epoch, first in self.epochs.items() if first < step]
        if not begun:
            return None
        first, epoch = max(begun)
        return epoch, step - first - 1

    def state_at(self, step: int) -> dict[str, int] | None:
        """The digests of the state after a step by name, as `Digests.at`; None if it has none."""
        for segment in reversed(self.segments):
            for at in np.flatnonzero(segment.state_steps == step):
                row = map(int, segment.state_rows[at])
                return dict(zip(segment.head.state_names, row, strict=True))
        return None

    def cut(self, step: int) -> None:
        """Removes what was written after a step."""
        for segment in self.segments:
            segment.cut(step)
        self.segments = [segment for segment in self.segments if segment.first < step]
        path = self.folder / _EPOCHS
        if path.exists():
            kept = [f"{e} {first}\n" for e, first in self.epochs.items() if first < step]
            path.write_text("".join(kept), encoding="utf-8")


class TraceWriter:
    """`TraceWriter(folder, step, every, start).add(digests)`: append the digests of steps.

    A run from step 0 renames the trace of an earlier one, such as to `trace-1`. Another one
    continues the trace, after the rows up to its first step.

    Args:
        folder: the folder, absolute.
        step: the step at which the run starts.
        every: the steps between two rows of the state.
        start: the digests of the state at this step.

    Attributes:
        last: the step of the newest row.
        continues: whether the folder had the trace up to the first step.

    Raises:
        CheckpointError: the trace in the folder is that of another run.
    """

    def __init__(self, folder: Path, step: int, every: int, start: Digests) -> None:
        self.last = step
        self._folder, self._every = folder, every
        self._start: Digests | None = start
        self._files: list[Any] = []
        self._head: Head | None = None
        if step == 0 and folder.exists():
            folder.rename(free_name(folder))
        folder.mkdir(parents=True, exist_ok=True)
        trace = Trace(folder)
        trace.cut(step)
        self._epochs = Trace(folder).epochs
        before = trace.segments[-1] if trace.segments else None
        self.continues = before is not None and before.last == step
        if before is not None and before.last == step and before.head.every == every:
            _check_same(before, step, start)
            self._open(before.stem, before.head)
            self._start = None

    def add(self, digests: Digests) -> None:
        """Appends the rows of the steps that have none yet."""
        steps = digests.steps
        if not steps or steps[-1] <= self.last:
            return
        known = self.last + 1 - steps[0]
        if known < 0:  # steps are missing
            self.close()
            self.last, self._start, known = steps[0] - 1, None, 0
        if self._head is None or not _is_of(digests, self._head):
            self._begin(digests)
        new = [row for row, step in enumerate(digests.state_steps) if step > self.last]
        self._write(digests.rows[known:], digests.state_rows[new])
        self.last = steps[-1]

    def add_epoch(self, epoch: int, first: int) -> None:
        """Notes the step before the first one of an epoch."""
        if self._epochs.get(epoch) == first:  # a resumed run may begin within an epoch
            return
        self._epochs[epoch] = first
        with (self._folder / _EPOCHS).open("a", encoding="utf-8") as file:
            file.write(f"{epoch} {first}\n")

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.close()
        self._files, self._head = [], None

    def _begin(self, digests: Digests) -> None:
        """Begins a segment with the columns of these digests."""
        self.close()
        start, self._start = self._start, None
        if start is not None and start.state_names != digests.state_names:
            start = None
        names, state = list(digests.names), (digests.state_names, digests.state_types)
        head = Head(_VERSION, self.last, self._every, start is not None, names, *map(list, state))
        stem = self._folder / f"from-{self.last}"
        for suffix in (".rows", ".state"):  # before the description, which makes them a segment
            stem.with_suffix(suffix).write_bytes(b"")
        stem.with_suffix(".json").write_text(json.dumps(asdict(head), indent=1), encoding="utf-8")
        self._open(stem, head)
        if start is not None:
            self._write(start.rows, start.state_rows)

    def _open(self, stem: Path, head: Head) -> None:
        # Without buffers, so that a killed process has written its rows.
        files = [stem.with_suffix(suffix) for suffix in (".rows", ".state")]
        self._files, self._head = [path.open("ab", buffering=0) for path in files], head

    def _write(self, *tables: Table) -> None:
        for file, table in zip(self._files, tables, strict=True):
            file.write(np.ascontiguousarray(table, _TYPE).tobytes())


def _check_same(segment: Segment, step: int, start: Digests) -> None:
    """Checks that a trace ends with the state with which a run continues."""
    at = np.flatnonzero(segment.state_steps == step)
    if not len(at) or tuple(segment.head.state_names) != start.state_names:
        return
    differ = np.flatnonzero(segment.state_rows[at[0]] != start.state_rows[0])
    if len(differ):
        names = [start.state_names[index] for index in differ]
        raise CheckpointError(
            f"{segment.stem.parent} is not the trace of the run that continues at step {step:,}: "
            f"{names[0]} and {len(names) - 1} more arrays have other digests there. Give this run "
            f"a folder of its own"
        )


def _is_of(digests: Digests, head: Head) -> bool:
    """Whether digests have the columns of a segment."""
    names = [list(digests.names), list(digests.state_names), list(digests.state_types)]
    return names == [head.names, head.state_names, head.state_types]


def _due(head: Head, last: int) -> np.ndarray[Any, Any]:
    """The steps of a segment at which the state is due."""
    next_one = (head.first // head.every + 1) * head.every
    steps = np.arange(next_one, last + 1, head.every)
    return np.concatenate([[head.first], steps]).astype(int) if head.has_start else steps


def _table(path: Path, width: int) -> Table:
    """The whole rows of a file."""
    size = path.stat().st_size if path.exists() else 0
    count = 0 if width == 0 else size // (_TYPE.itemsize * width)
    if count == 0:
        return np.zeros((0, width), np.uint32)
    return np.memmap(path, _TYPE, mode="r", shape=(count, width))
