"""Validation within a training run: between the callbacks that log and those that monitor."""

from collections.abc import Callable

from solstice._callback import Callback
from solstice._record import Record


class Validation(Callback):
    """Evaluates after each epoch of training, or at every so many steps instead.

    It is a callback like any other, so that a call ends where it looks; the Trainer calls it after
    those that log.

    Args:
        evaluate: called with the moment, whose Experiment is there.
        every: training steps from one validation to the next; None for one after each epoch.

    Attributes:
        closes_epochs: whether an epoch that ends now is validated.
    """

    needs = ("experiment",)

    def __init__(self, evaluate: Callable[[Record], object], every: int | None) -> None:
        self.every = every
        self.closes_epochs = True
        self._evaluate = evaluate

    def on_step_end(self, record: Record) -> None:
        """Evaluates at a step."""
        if record.mode == "train":
            self._evaluate(record)

    def on_epoch_end(self, record: Record) -> None:
        """Evaluates after an epoch."""
        if record.mode == "train" and self.every is None and self.closes_epochs:
            self._evaluate(record)
