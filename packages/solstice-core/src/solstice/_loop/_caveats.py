"""Caveats: in what a run that continues may differ from the saved one, and what follows from it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from solstice._console import warn
from solstice._errors import CheckpointError


@dataclass(frozen=True)
class Caveats:
    """The differences from a saved run, in words.

    Attributes:
        machine: why this machine may compute other numbers each time, also in one run.
        steps: those that may change the numbers of the steps.
        scalars: scalars of the Experiment given, which have no effect in a run that continues.
        callbacks: callbacks whose state is lost, or that have none.
    """

    machine: list[str] = field(default_factory=list[str])
    steps: list[str] = field(default_factory=list[str])
    scalars: list[str] = field(default_factory=list[str])
    callbacks: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        return "; ".join([*self.machine, *self.steps, *self.scalars, *self.callbacks])


Judge = Callable[[Caveats], None]
"""Raises an error for some caveats."""


def refused(what: str, *, is_start: bool, advice: str = "") -> Judge:
    """A judge that refuses a replay which may compute other numbers.

    Args:
        what: the step of the run, in words.
        is_start: whether the replay starts with the Experiment given.
        advice: ends the message.
    """

    def judge(caveats: Caveats) -> None:
        # From a checkpoint, all numbers of the Experiment are read.
        reasons = [*caveats.machine, *caveats.steps, *(caveats.scalars if is_start else [])]
        if reasons:
            raise CheckpointError(
                f"{what} cannot be computed exactly: {'; '.join(reasons)}{advice}"
            )

    return judge


def report(path: Path, caveats: Caveats, *, strict: bool) -> None:
    """Warns of the caveats of a resumed run; raises a CheckpointError if `strict`."""
    if not str(caveats):
        return
    message = f"the run of {path} cannot be resumed exactly: {caveats}"
    if strict:
        raise CheckpointError(f"{message}. Without strict_resume this is only a warning")
    warn(message, stacklevel=8)
