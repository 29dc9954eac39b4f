"""Limits: when a training run ends."""

from dataclasses import dataclass, replace

from solstice._record import Record


@dataclass(frozen=True)
class Limits:
    """The length of a run.

    Attributes:
        num_epochs: passes over the data set; None for no limit.
        max_steps: the steps after which it ends; None for no limit.
        began: the steps before it, in a resumed run.
    """

    num_epochs: int | None = None
    max_steps: int | None = None
    began: int = 0

    def reached(self, at: Record, stop: object = None) -> bool:
        """Whether the run ends at this moment; a started epoch is closed first."""
        if self.num_epochs is not None and at.epoch >= self.num_epochs:
            return True
        enough = self.max_steps is not None and at.step >= self.max_steps
        return at.epoch_step == 0 and (enough or stop is not None)

    def room(self, count: int) -> int | None:
        """The steps that are left after `count` of them; None for no limit."""
        return None if self.max_steps is None else self.max_steps - count


def next_epoch(at: Record) -> Record:
    """The moment before the next epoch."""
    return replace(
        at, epoch=at.epoch + 1, epoch_step=0, num_examples=0, given={}, interrupted=False
    )
