"""Validation: evaluates within `fit`, between the callbacks that log and those that monitor."""

from collections.abc import Callable

from solstice._callback import Callback
from solstice._record import Record


class Validation(Callback):
    """Evaluates after each epoch of training, or at every n-th step instead.

    It is a callback because the compiled call must end at its steps, as for a callback that reads
    the Experiment.

    Args:
        evaluate: the function to call, with a record that has `experiment`.
        every: training steps from one validation to the next; None for one after each epoch.

    Attributes:
        closes_epochs: whether to validate at the end of the current epoch; False after `Stop`.
    """

    needs = ("experiment",)

    def __init__(self, evaluate: Callable[[Record], object], every: int | None) -> None:
        self.every = every
        self.closes_epochs = True
        self._evaluate = evaluate

    def on_step_end(self, record: Record) -> None:
        """Evaluates at every n-th step of training."""
        if record.mode == "train":
            self._evaluate(record)

    def on_epoch_end(self, record: Record) -> None:
        """Evaluates after an epoch of training, if there is no `every`."""
        if record.mode == "train" and self.every is None and self.closes_epochs:
            self._evaluate(record)
