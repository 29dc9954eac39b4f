"""diff: what differs between two runs, and the first step at which they part."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Literal, TypeAlias

from solstice._errors import CheckpointError
from solstice._paths import local_path
from solstice._traces import FOLDER, Trace
from solstice.runs._before import differences_before
from solstice.runs._info import FILE, find
from solstice.runs._parting import Parted, parted

Kind: TypeAlias = Literal["start", "data", "outputs", "state"]
"""What differs first."""

_FEW = 4


@dataclass(frozen=True)
class RunDiff:
    """`print(solstice.diff("runs/a", "runs/b"))`: the comparison of two runs.

    Attributes:
        folders: the folders of the runs.
        before: what differed before the first step, in words; None if one has no `run.json`.
        kind: what differs first: "start", the state before the first step; "data", the batch of
            `step`; "outputs", which the same state and batch gave; "state", the Experiment after
            the same outputs. None if all common steps are equal.
        step: the first step at which they differ, or None.
        names: the arrays that differ there, such as "batch/0" or "state/params/w".
        epoch: the epoch of this step, from 0; None if they are equal or differ at the start.
        batch: the batch of this step within the epoch, from 0.
        state_before: the newest step before it after which both states are equal, or None.
        through: the last step that both runs have; None if a trace is missing.
        alone: the arrays that only one of the runs has.
        notes: more, in words.
    """

    folders: tuple[str, str]
    before: list[str] | None
    kind: Kind | None = None
    step: int | None = None
    names: tuple[str, ...] = ()
    epoch: int | None = None
    batch: int | None = None
    state_before: int | None = None
    through: int | None = None
    alone: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether all steps that both runs have gave the same bits."""
        return self.through is not None and self.step is None and not self.alone

    def __str__(self) -> str:
        lines = [f"{self.folders[0]} and {self.folders[1]}", *self._before(), *self._alone()]
        return "\n".join([*lines, *self._verdict(), *self.notes])

    __repr__ = __str__

    def _before(self) -> list[str]:
        if self.before is None:
            return []
        return [f"before: {line}" for line in self.before] or ["before: no difference"]

    def _alone(self) -> list[str]:
        return [f"only one of them has {_few(self.alone)}"] if self.alone else []

    def _verdict(self) -> list[str]:
        if self.through is None:
            return []
        if self.step is None:
            return [f"equal through step {self.through:,}"]
        if self.kind == "start":
            return [f"different at the start, step {self.step:,}: {_few(self.names)}"]
        return [f"equal through step {self.step - 1:,}", f"at step {self.step:,}{self._place()}"]

    def _place(self) -> str:
        at = "" if self.epoch is None else f" (epoch {self.epoch}, batch {self.batch}, both from 0)"
        since = self.state_before
        known = since is not None and self.step is not None and since == self.step - 1
        same = "the same state and batch give" if known else "the same batch gives"
        what = {
            "data": f"the batch differs: {_few(self.names)}",
            "outputs": f"{same} other outputs: {_few(self.names)}",
            "state": f"{same} another state, with the same outputs: {_few(self.names)}",
        }[self.kind or "state"]
        if known or self.kind == "data":
            return f"{at}, {what}"
        last = "never" if since is None else f"at step {since:,}"
        return f"{at}, {what}. The states were compared before, and equal, {last}"


def diff(one: str | PathLike[str], other: str | PathLike[str]) -> RunDiff:
    """`print(solstice.diff("runs/a", "runs/b"))`: the first step at which two runs part.

    It compares what both runs wrote: `run.json` for what differed before the first step, and the
    traces of `solstice.callbacks.Trace` for the steps. `python -m solstice diff runs/a runs/b`
    prints the same. To compare the arrays of two checkpoints, use `solstice.checkpoint.diff`.

    Args:
        one: the folder of a run.
        other: the folder of another.

    Raises:
        CheckpointError: a folder has neither a trace nor `run.json`, or a damaged one.
    """
    paths = [local_path(one, "one"), local_path(other, "other")]
    folders = str(one), str(other)
    mine, theirs = infos = [find(path) for path in paths]
    traces = [Trace(path / FOLDER) for path in paths]
    for folder, info, trace in zip(folders, infos, traces, strict=True):
        if info is None and not trace.segments:
            raise CheckpointError(
                f"{folder} has neither {FILE} nor a trace, so it is not the folder of a run. Add "
                f"`Trace({folder!r})` to the callbacks of the run"
            )
    before = None if mine is None or theirs is None else differences_before(mine, theirs)
    missing = [f for f, trace in zip(folders, traces, strict=True) if not trace.segments]
    if missing:
        note = f"no step was compared, since {missing[0]} has no trace: add `Trace({missing[0]!r})`"
        return RunDiff(folders, before, notes=(f"{note} to the callbacks of the run",))
    return _compared(folders, before, parted(*traces), traces)


def _compared(
    folders: tuple[str, str], before: list[str] | None, found: Parted, traces: list[Trace]
) -> RunDiff:
    if found.last < found.first:
        words = [f"{f} has steps {_span(t)}" for f, t in zip(folders, traces, strict=True)]
        note = f"no step was compared, since {' and '.join(words)}"
        return RunDiff(folders, before, alone=found.alone, notes=(note,))
    parting = found.parting
    if parting is None:
        ends = [f for f, t in zip(folders, traces, strict=True) if t.last == found.last]
        notes = (f"{ends[0]} ends there",) if len(ends) == 1 else ()
        through = found.last
        return RunDiff(folders, before, through=through, alone=found.alone, notes=notes)
    kind: Kind = "state" if parting.is_state else "data" if parting.of_batch else "outputs"
    is_start = parting.is_state and parting.step == found.first
    moment = None if is_start else traces[0].moment(parting.step)
    return RunDiff(
        folders,
        before,
        kind="start" if is_start else kind,
        step=parting.step,
        names=parting.of_batch or parting.names,
        epoch=moment and moment[0],
        batch=moment and moment[1],
        state_before=found.state_before,
        through=found.last,
        alone=found.alone,
        notes=_of_keys(parting.names, traces[0]),
    )


def _of_keys(names: tuple[str, ...], trace: Trace) -> tuple[str, ...]:
    """A sentence on random keys among the arrays that differ."""
    types = {
        name: kind
        for segment in trace.segments
        for name, kind in zip(segment.head.state_names, segment.head.state_types, strict=True)
    }
    keys = [name for name in names if types.get(name, "").startswith("key<")]
    return (f"random keys differ: {_few(keys)}",) if keys else ()


def _span(trace: Trace) -> str:
    return f"{trace.segments[0].first + 1:,} to {trace.last:,}"


def _few(names: Sequence[str]) -> str:
    """A few of the names, in words."""
    shown = ", ".join(names[:_FEW])
    return shown if len(names) <= _FEW else f"{shown} and {len(names) - _FEW} more"
