"""Validation: the data set that is evaluated within a training run, and when."""

from dataclasses import dataclass

from solstice._sources import Source


@dataclass(frozen=True)
class Validation:
    """The validation within a training run.

    Attributes:
        source: its data set.
        every: training steps from one validation to the next; None for one after each epoch.
    """

    source: Source
    every: int | None

    def is_due(self, step: int) -> bool:
        """Whether a validation is due at a training step, within an epoch."""
        return self.every is not None and step % self.every == 0


def every_of(validation: Validation | None) -> int | None:
    """The steps from one validation within an epoch to the next; None without such."""
    return validation and validation.every
