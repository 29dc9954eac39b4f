"""The first step at which two traces part."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from solstice._digests import Table
from solstice._traces import Segment, Trace

_ROWS = 2**14
"""The rows that are compared at once, because a trace may be larger than the memory."""


@dataclass(frozen=True, order=True)
class Parting:
    """A place in the order of a run at which two runs differ.

    Attributes:
        step: the step.
        is_state: whether the state after this step differs; else its batch or its outputs.
        names: the arrays that differ.
    """

    step: int
    is_state: bool
    names: tuple[str, ...]

    @property
    def of_batch(self) -> tuple[str, ...]:
        """The arrays of the batch among the names."""
        return tuple(name for name in self.names if name.split("/")[0] == "batch")


@dataclass(frozen=True)
class Parted:
    """The comparison of two traces.

    Attributes:
        first: the first common step with a row of the state, or the step before the first common
            one.
        last: the last common step; before `first` if there is none.
        parting: the first difference, or None.
        state_before: the newest step before it at which both states are equal; None if there is
            none.
        alone: the arrays that only one of the traces has.
    """

    first: int
    last: int
    parting: Parting | None
    state_before: int | None
    alone: tuple[str, ...]


def parted(one: Trace, other: Trace) -> Parted:
    """The first difference of two traces."""
    pairs = [(a, b) for a in one.segments for b in other.segments if _meet(a, b)]
    found = [part for a, b in pairs for part in (_of_rows(a, b), _of_state(a, b)) if part]
    parting = min(found, default=None)
    states = np.concatenate([_common(a, b) for a, b in pairs] or [np.zeros(0, int)])
    limit = np.inf if parting is None else parting.step
    equal = [int(step) for step in states[states < limit]]
    # Of the same step the state comes last, so with other outputs the state before is meant.
    return Parted(
        min((max(a.first, b.first) for a, b in pairs), default=0),
        max((min(a.last, b.last) for a, b in pairs), default=-1),
        parting,
        max(equal, default=None),
        _alone(one, other),
    )


def _meet(a: Segment, b: Segment) -> bool:
    """Whether two segments have a step in common."""
    return min(a.last, b.last) > max(a.first, b.first) or len(_common(a, b)) > 0


def _common(a: Segment, b: Segment) -> np.ndarray[Any, Any]:
    """The steps at which both have a row of the state."""
    return np.intersect1d(a.state_steps, b.state_steps)


def _of_rows(a: Segment, b: Segment) -> Parting | None:
    """The first step whose batch or outputs differ."""
    steps = np.arange(max(a.first, b.first), min(a.last, b.last))
    found = _first((a.rows, steps - a.first, a.head.names), (b.rows, steps - b.first, b.head.names))
    return found and Parting(int(steps[found[0]]) + 1, False, found[1])


def _of_state(a: Segment, b: Segment) -> Parting | None:
    """The first step after which the states differ."""
    steps = _common(a, b)
    one, other = (
        (s.state_rows, np.searchsorted(s.state_steps, steps), s.head.state_names) for s in (a, b)
    )
    found = _first(one, other)
    return found and Parting(int(steps[found[0]]), True, found[1])


_Rows: TypeAlias = tuple[Table, np.ndarray[Any, Any], list[str]]
"""A table, the indices of the rows to compare, and the names of its columns."""


def _first(one: _Rows, other: _Rows) -> tuple[int, tuple[str, ...]] | None:
    """The first row that differs in the columns of both, and the names of these columns."""
    both = [name for name in one[2] if name in other[2]]
    columns = [[names.index(name) for name in both] for _, _, names in (one, other)]
    for start in range(0, len(one[1]), _ROWS):
        part = slice(start, start + _ROWS)
        mine, theirs = one[0][one[1][part]], other[0][other[1][part]]
        differs = mine[:, columns[0]] != theirs[:, columns[1]]
        rows = np.flatnonzero(differs.any(axis=1))
        if len(rows):
            at = int(rows[0])
            return start + at, tuple(both[i] for i in np.flatnonzero(differs[at]))
    return None


def _alone(one: Trace, other: Trace) -> tuple[str, ...]:
    mine, theirs = ({n: None for s in trace.segments for n in _typed(s)} for trace in (one, other))
    return tuple(name for name in {**mine, **theirs} if (name in mine) != (name in theirs))


def _typed(segment: Segment) -> list[str]:
    state = zip(segment.head.state_names, segment.head.state_types, strict=True)
    return [*segment.head.names, *(f"{name} {kind}" for name, kind in state)]
