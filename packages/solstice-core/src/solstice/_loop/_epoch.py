"""Epoch: the state of one epoch or evaluation, and Call: a compiled call of several steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from solstice._engine import Block, BlockOutputs
from solstice._metrics import Metrics
from solstice._record import Compilation, Once, Record
from solstice._sources import fingerprint

Point = Callable[[], Record]
"""Makes the record of a moment at which a signal may save the run."""


@dataclass(frozen=True)
class Call:
    """A compiled call of several steps.

    Attributes:
        block: its batches.
        outputs: its outputs, on the device.
        start: the moment before its first step.
        before: makes the record of that moment for a signal; None if it was not kept.
        compilation: what it compiled, or None.
    """

    block: Block
    outputs: BlockOutputs
    start: Record
    before: Point | None
    compilation: Compilation | None

    def __len__(self) -> int:
        return len(self.block)


@dataclass
class Epoch:
    """The state of one epoch, or of one evaluation.

    Attributes:
        call: the newest call.
        count: the number of its steps up to the current moment.
        following: the block after it, if it has been read.
        has_met: whether the processes have agreed that all see the end of this call.
        failure: an error of reading that block.
        totals: the metrics so far, if `max_steps` ended the epoch, possibly before its end.
        metrics: the metrics, once the epoch has ended.
        is_complete: whether the epoch ended without a request to stop.
        measured: the newest values of the hook `measure`, with their moment.
        validated: for `epoch_step`, the metrics of its newest validation.
        before_end: the metrics so far at its end, until `epoch_step` has run.
        was_logged: whether the callbacks that log have seen its end before the run was resumed.
    """

    call: Call | None = None
    count: int = 0
    following: Block | None = None
    has_met: bool = False
    failure: BaseException | None = None
    totals: list[Metrics | None] | None = None
    metrics: Once | None = None
    is_complete: bool = False
    measured: tuple[object, dict[str, Any]] = field(default=(None, {}))
    validated: Once | None = None
    before_end: list[Metrics | None] | None = None
    was_logged: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether the metrics of the whole epoch are known."""
        return self.metrics is not None

    @property
    def is_closed(self) -> bool:
        """Whether nothing of the epoch is left that changes the Experiment."""
        return self.has_ended and self.before_end is None

    @property
    def is_logged(self) -> bool:
        """Whether callbacks that log have seen its end, and `epoch_step` has not run."""
        return self.was_logged or self.before_end is not None

    @property
    def ended_by_max_steps(self) -> bool:
        """Whether `max_steps` ended it, possibly before its last batch."""
        return self.has_ended and self.totals is not None

    def take_validated(self, validation: "Epoch") -> None:
        """Keeps the metrics of a validation; one that was stopped ends this epoch short."""
        self.validated = validation.metrics
        self.is_complete = self.is_complete and validation.is_complete

    def raise_failure(self) -> None:
        """Raises the `failure`, if there is one."""
        error, self.failure = self.failure, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # whose frames refer to the run

    def note_failure(self, error: BaseException) -> None:
        """Adds the `failure`, if there is one, to the error of a hook, which ends the run first."""
        if self.failure is not None:
            error.add_note(f"Reading the next batch failed too: {self.failure!r:.200}")
            self.failure = None

    def fingerprints(self) -> tuple[str | None, str | None]:
        """Those of the newest batch, and of the next one if it has been read."""
        if self.call is None:
            return None, None
        newest = fingerprint(self.call.block.arrays(max(self.count, 1) - 1))
        # Only at the end of a call, because runs are saved there.
        is_end = self.count == len(self.call) and not self.has_ended
        following = self.following if is_end else None
        return newest, None if following is None else fingerprint(following.arrays(0))
