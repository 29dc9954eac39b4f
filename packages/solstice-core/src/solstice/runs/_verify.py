"""Verify: holds the steps of a replay against the trace of the run."""

from pathlib import Path

import numpy as np

from solstice._callback import Callback
from solstice._digests import Digests
from solstice._record import Record
from solstice._traces import FOLDER, Trace
from solstice.checkpoint import CheckpointError, is_url

_MOST = 5
"""The most names in a message."""


class Verify(Callback):
    """`Verify(trace)`: raises a CheckpointError at the first step that is not that of the trace."""

    modes = ("train",)
    needs = ("digests",)

    def __init__(self, trace: Trace) -> None:
        self.every = min(segment.head.every for segment in trace.segments)
        self._trace = trace
        self._last = 0
        self._record: Record | None = None

    def on_epoch_start(self, record: Record) -> None:
        """Keeps a record, whose digests are those of the newest moment."""
        self._record = record

    def on_call_end(self, record: Record) -> None:
        """Compares the steps of a call."""
        self._compare(record.digests)

    def on_epoch_end(self, record: Record) -> None:
        """Compares the steps of a call within which the replay has stopped."""
        if self._record is not None:
            self._compare(self._record.digests)
            self._record = None

    def _compare(self, digests: Digests) -> None:
        for step in (step for step in digests.steps if step > self._last):
            self._last, was, now = step, digests_at(self._trace, step), digests.at(step)
            names = [name for name, number in now.items() if was.get(name, number) != number]
            if names:
                more = len(names) - _MOST
                listed = [*names[:_MOST], *([f"{more} more"] if more > 0 else [])]
                raise CheckpointError(
                    f"step {step:,} of the replay is not that of the run: {', '.join(listed)} have "
                    f"other digests than in {self._trace.folder}"
                )


def trace_of(folder: Path) -> Trace | None:
    """The trace in the folder of a run; None without one."""
    place = folder / FOLDER
    if is_url(folder) or not place.is_dir():
        return None
    found = Trace(place)
    return found if found.segments else None


def digests_at(trace: Trace, step: int) -> dict[str, int]:
    """The digests of a step in a trace, by name; none if it has no such step."""
    found: dict[str, int] = {}
    for segment in trace.segments:
        head, states = segment.head, np.flatnonzero(segment.state_steps == step)
        if segment.first < step <= segment.last:
            found |= zip(head.names, map(int, segment.rows[step - segment.first - 1]), strict=True)
        if len(states):
            rows = segment.state_rows[states[0]]
            found |= zip(head.state_names, map(int, rows), strict=True)
    return found
