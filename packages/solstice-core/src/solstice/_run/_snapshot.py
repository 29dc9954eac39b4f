"""All that a run needs to go on from a step as though it had never ended."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from solstice import _tree
from solstice._plain import from_plain, to_plain
from solstice._run._computation import ComputationNote
from solstice._run._owners import Owner
from solstice._schema import SchemaError, read
from solstice.checkpoint import CheckpointError
from solstice.checkpoint._rows import held
from solstice.data._arrays import is_numeric
from solstice.data._source import SourcePosition

VERSION = 1


@dataclass(frozen=True)
class Position:
    """Where a saved run stands.

    Attributes:
        step, epoch, epoch_step, num_examples: as in `Record`.
        is_closed: whether that epoch has ended, its validation done.
        stop: why a callback had asked to stop, or None.
        steps_per_call: the most steps in a call of that run.
        backend: the kind of device.
        last_batch: the fingerprint of the newest batch; None before the first.
        data: where the data set stands; see `Source.position`.
        metrics: the metrics so far of each reader, leaves by path.
        callbacks: what each callback remembers, by name.
        owners: who each callback is, by name; see `Owner`.
        ended_by_max_steps: whether only `max_steps` ended that epoch: a run with more steps
            continues within it, from these metrics.
        steps_per_epoch: the length that the data set told, or None.
        computation: what the run computed with; see `Computation.note`.
        saved_at: when, in seconds since 1970.
    """

    step: int
    epoch: int
    epoch_step: int
    num_examples: int
    is_closed: bool
    stop: str | None
    steps_per_call: int
    backend: str
    last_batch: str | None
    data: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    callbacks: dict[str, Any]
    ended_by_max_steps: bool = False
    steps_per_epoch: int | None = None
    computation: dict[str, Any] = field(default_factory=dict[str, Any])
    owners: dict[str, Owner] = field(default_factory=dict[str, Owner])
    saved_at: float = 0.0

    def __post_init__(self) -> None:
        if self.step < max(self.epoch, self.epoch_step) or self.steps_per_call < 1:
            raise SchemaError(
                f"note['run'] cannot be at step {self.step} in epoch {self.epoch}, at batch "
                f"{self.epoch_step} of it, with {self.steps_per_call} steps a call"
            )
        for reader, numbers in self.metrics.items():
            for path, array in numbers.items():
                if not is_numeric(array):
                    raise SchemaError(f"note['run']['metrics'][{reader!r}][{path!r}] is no array")

    @staticmethod
    def of(note: Mapping[str, Any], rows: Callable[[Any], list[Any]]) -> "Position | None":
        """The position in the note of a checkpoint; None if that is of no run.

        Args:
            note: as in the manifest, or as `note` gives it.
            rows: reads a list that the checkpoint has in a file of its own.

        Raises:
            SchemaError: an entry is not what it must be.
        """
        run: Any = note.get("run")
        if not isinstance(run, dict) or run.get("version") != VERSION:
            return None
        fields = cast("dict[str, Any]", run)
        values = {n: _value(n, value, rows) for n, value in fields.items() if n != "version"}
        position = read(Position, values, "note['run']")
        read(SourcePosition, position.data, "note['run']['data']")
        read(ComputationNote, position.computation, "note['run']['computation']")
        return position

    def note(self) -> dict[str, Any]:
        """The note of a checkpoint."""
        states = [[n, to_plain(s, f"{n}.state_dict()", held)] for n, s in self.callbacks.items()]
        owners = {name: vars(owner) for name, owner in self.owners.items()}
        now = {"callbacks": {}, "owners": owners, "saved_at": time.time()}
        fields: dict[str, Any] = {**vars(self), **now}
        plain = {name: to_plain(value, name) for name, value in fields.items()}
        return {"run": {**plain, "version": VERSION, "callbacks": {"dict": states}}}


def _value(name: str, plain: Any, rows: Callable[[Any], list[Any]]) -> Any:
    try:
        return from_plain(plain, rows)
    except CheckpointError:
        raise
    except RecursionError:
        raise SchemaError(f"note['run'][{name!r}] is nested too deeply") from None
    except Exception as error:  # whatever NumPy and base64 raise of what nobody has written so
        raise SchemaError(f"note['run'][{name!r}] cannot be read: {error!r:.200}") from error


def without_callbacks(note: Mapping[str, Any]) -> dict[str, Any]:
    """The note of a run to be looked at, without the callbacks and the validation that it had."""
    position = Position.of(note, lambda _: [])
    if position is None:
        return {}
    data = {**position.data, "validation": None}
    return replace(position, callbacks={}, owners={}, data=data).note()


def states_of(callbacks: list[Any]) -> dict[str, Any]:
    """What each callback remembers, by name, of those that remember something."""
    states = {name: callback.state_dict() for name, callback in named(callbacks).items()}
    return {name: state for name, state in states.items() if state}


def owners_of(callbacks: list[Any]) -> dict[str, Owner]:
    """Who each callback is, by name."""
    return {name: Owner.of(callback) for name, callback in named(callbacks).items()}


def named(callbacks: list[Any]) -> dict[str, Any]:
    """The callbacks by the names of their classes, numbered where there are several of one."""
    found: dict[str, Any] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        count = sum(type(other).__name__ == kind for other in found.values())
        found[kind if count == 0 else f"{kind}-{count + 1}"] = callback
    return found


def by_path(metrics: Any) -> dict[str, Any]:
    """The numbers of metrics by path, on the host."""
    return {path: np.asarray(leaf) for path, leaf in _tree.leaves_by_path(metrics)}
