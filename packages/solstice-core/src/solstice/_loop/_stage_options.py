"""StageOptions: the options of the stages of a run."""

from collections.abc import Callable
from dataclasses import dataclass

from solstice._engine import Layout
from solstice._experiment import Experiment
from solstice._types import Batch


@dataclass(frozen=True)
class StageOptions:
    """The options of the stages of a run.

    Attributes:
        steps_per_call: the user's choice, or None.
        prefetch: the number of batches that a thread reads ahead.
        given: the caller's Experiment, if the training gives it up.
        layout: the mesh of the Trainer; None for the device of the Experiment.
        as_evaluated: makes the Experiment that validations evaluate, given the first batch; None to
            evaluate the trained one.
    """

    steps_per_call: int | None = None
    prefetch: int = 0
    given: Experiment | None = None
    layout: Layout | None = None
    as_evaluated: Callable[[Experiment, Batch], Experiment] | None = None
