"""BatchCheck: calls `check_batch` of an Experiment in training, and keeps no array alive for it."""

from typing import Any

import jax

from solstice import _tree
from solstice._experiment import Experiment
from solstice._loop._state import RunState
from solstice._types import Batch


class BatchCheck:
    """The checks of the batches of one epoch.

    The Experiment of an epoch's start would be one more copy of the state until its end. So checks
    run on one with deleted arrays, where reading an array is an error. A check that reads one gets
    the Experiment, and this copy is made.

    Args:
        state: the current moment of a training run.
        hollow: the `hollow` of its Experiment.
    """

    def __init__(self, state: RunState, hollow: Experiment) -> None:
        self._state = state
        self._hollow = hollow
        self._whole: Experiment | None = None

    def __call__(self, batch: Batch) -> None:
        """Calls `check_batch`."""
        if self._whole is None:
            try:
                self._hollow.check_batch(batch)
            except Exception:  # of an array that it reads, or of a batch that it refuses
                self._whole = self._state.experiment
            else:
                return
        self._whole.check_batch(batch)


def hollow(experiment: Experiment) -> Experiment:
    """`hollow(exp)`: the Experiment with deleted arrays, which take no memory."""
    return _tree.map(_deleted, experiment)


def _deleted(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    [copy] = _tree.copies([leaf])
    copy.delete()
    return copy
