"""Cadence: the steps at which a compiled call ends, so that callbacks do not see calls."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from solstice._callback import Callback
from solstice._loop._due import listens_to_steps


@dataclass(frozen=True)
class Cadence:
    """The length of a call, as a pure function of its first step.

    Attributes:
        after: a call ends after each step that is a multiple of one of these.
        before: a call ends before each step that is a multiple of one of these.
        size: the most steps in a call.
        ends: a call ends after each of these steps.
    """

    after: tuple[int, ...]
    before: tuple[int, ...]
    size: int
    ends: tuple[int, ...] = ()

    def room(self, position: int) -> int:
        """The most steps in a call that starts after `position` steps."""
        ends = [every - position % every for every in self.after]
        ends += [end - position for end in self.ends if end > position]
        # A call may start with a step that has `on_step_start`, because the hook runs before it.
        starts = [(every - 1 - position % every) or every for every in self.before]
        return min([self.size, *ends, *starts])

    @property
    def period(self) -> int:
        """The number of steps after which the cadence repeats."""
        return math.lcm(*self.after, *self.before)


def cadence_of(
    callbacks: Iterable[Callback], size: int, every: int | None, began: int = 0
) -> Cadence:
    """The cadence that these callbacks need, and a validation at every `every` steps.

    The run began after `began` steps, from which `call_ends` are counted.
    """
    between = watchers_between(callbacks)
    before = {c.every or 1 for c in between if listens_to_steps(c, "on_step_start")}
    after = {c.every or 1 for c in between if _reads_between(c)}
    if every is not None:
        after.add(every)
    ends = {began + end for callback in callbacks for end in callback.call_ends}
    return Cadence(tuple(sorted(after)), tuple(sorted(before)), size, tuple(sorted(ends)))


def watchers_between(callbacks: Iterable[Callback]) -> list[Callback]:
    """Those called between two calls: they have `on_step_start`, or read state or metrics."""
    return [c for c in callbacks if listens_to_steps(c, "on_step_start") or _reads_between(c)]


def watchers_within(callbacks: Iterable[Callback]) -> list[Callback]:
    """Those that can stop the run at an earlier step than the last of a call."""
    return [
        callback
        for callback in callbacks
        if callback.can_stop
        and (
            listens_to_steps(callback, "on_step_start")
            or (listens_to_steps(callback, "on_step_end") and not _reads_between(callback))
        )
    ]


def _reads_between(callback: Callback) -> bool:
    return listens_to_steps(callback, "on_step_end") and bool(
        {"experiment", "metrics", "snapshot"} & {*callback.needs}
    )
