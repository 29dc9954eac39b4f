"""BatchChecks: the checks of the batches of a run, which keep no copy of the state in memory."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from solstice import _tree
from solstice._engine import Stepper, type_of
from solstice._experiment import Experiment, overrides, stacked_check_of
from solstice._loop._state import RunState
from solstice._types import Batch

Check: TypeAlias = Callable[[Batch], None]


class BatchChecks:
    """The checks of the batches of one run.

    Args:
        state: the current moment of the run.
        stepper: runs its steps.
        is_given: whether the run has an Experiment that stays the same, and is held anyway.
    """

    def __init__(self, state: RunState, stepper: Stepper, is_given: bool) -> None:
        self._state = state
        # Of the given one, because the stepper may have another that evaluates it.
        self._kind = type(state.experiment) if is_given else stepper.kind
        self._is_given = is_given
        self._is_compiled = not stepper.needs_batches
        self._made: tuple[Check | None, Experiment | None] | None = None

    def of_epoch(self) -> tuple[Check | None, Check | None]:
        """`check_batch` and the stacked check for one epoch; None where there is none."""
        # A batch to predict may have no targets, which a check would miss.
        if self._state.at.mode == "predict":
            return None, None
        stacked, hollowed = self._stacked_and_hollow
        if not overrides(self._kind, "check_batch"):
            return None, stacked
        return self._check if hollowed is None else self._of_every_batch(hollowed), stacked

    @property
    def _stacked_and_hollow(self) -> tuple[Check | None, Experiment | None]:
        """The stacked check, and the Experiment with deleted arrays; None if it is not needed.

        A compiled step changes arrays alone, so they are made once for a run.
        """
        if self._made is None or not self._is_compiled:
            experiment = self._state.experiment
            is_hollow = overrides(self._kind, "check_batch") and not self._is_given
            hollowed = hollow(experiment) if is_hollow else None
            self._made = stacked_check_of(experiment), hollowed
        return self._made

    def _check(self, batch: Batch) -> None:
        # The function of the class: a bound method of an Experiment costs 40 us a call.
        self._kind.check_batch(self._state.experiment, batch)

    def _of_every_batch(self, hollowed: Experiment) -> Check:
        """`check_batch` for each batch, of the Experiment at the start of the epoch.

        That Experiment would be one more copy of the state until the end of the epoch. So checks
        run on one with deleted arrays, where reading an array is an error. Only for a check that
        reads one is the copy made.
        """
        whole: Experiment | None = None

        def check(batch: Batch) -> None:
            nonlocal whole
            if whole is None:
                try:
                    return self._kind.check_batch(hollowed, batch)
                except Exception:  # of an array that it reads, or of a batch that it refuses
                    whole = self._state.experiment
            return self._kind.check_batch(whole, batch)

        return check


def hollow(experiment: Experiment) -> Experiment:
    """`hollow(exp)`: the Experiment with deleted arrays, which take no memory."""
    return _tree.map(_deleted, experiment)


_KINDS = 1000
"""The most kinds of arrays that are remembered."""

_deleted_ones: dict[object, jax.Array] = {}
"""A deleted array of each kind, because each fit needs them, and making one takes a copy."""


def _deleted(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    kind = leaf.shape, leaf.dtype, leaf.sharding, type_of(leaf).weak_type
    if kind not in _deleted_ones:
        if len(_deleted_ones) >= _KINDS:
            _deleted_ones.clear()
        [copy] = _tree.copies([leaf])
        copy.delete()
        _deleted_ones[kind] = copy
    return _deleted_ones[kind]
