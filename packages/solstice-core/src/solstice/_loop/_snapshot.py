"""Position: the saved state of a run, except its Experiment."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import jax
import numpy as np

from solstice import _tree
from solstice._batch import is_numeric
from solstice._callback import named
from solstice._errors import CheckpointError
from solstice._loop._about import About
from solstice._loop._computation import ComputationNote
from solstice._loop._owners import Owner
from solstice._plain import from_plain, to_plain
from solstice._schema import SchemaError, read
from solstice._sources import SourcePosition

VERSION = 1


@dataclass(frozen=True)
class Position:
    """The position of a saved run.

    Attributes:
        step, epoch, epoch_step, num_examples: as in `Record`.
        is_closed: whether the epoch has ended, with its validation.
        stop: the reason of a callback's request to stop, or None.
        steps_per_call: the most steps in a call.
        loops: whether a call is a loop; see `Arrangement`.
        backend: the kind of device.
        last_batch: the fingerprint of the newest batch; None before the first.
        data: the position in the data set; see `Source.position`.
        metrics: the metrics so far of each reader, leaves by path.
        callbacks: the state of each callback, by name.
        owners: the identity of each callback, by name; see `Owner`.
        ended_by_max_steps: whether only `max_steps` ended the epoch. A run with more steps then
            continues within it, from these metrics.
        steps_per_epoch: the length of the data set, or None.
        computation: steps, scalars and devices; see `Computation.note`.
        saved_at: the time of saving, in seconds since 1970.
        is_logged: whether the callbacks that log have seen the end of the epoch, which goes on with
            its validation and `epoch_step`.
        validated: for `epoch_step`, the metrics of the newest validation within the epoch.
        about: what stays the same while the run trains.
    """

    step: int
    epoch: int
    epoch_step: int
    num_examples: int
    is_closed: bool
    stop: str | None
    steps_per_call: int
    loops: bool
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
    is_logged: bool = False
    validated: dict[str, Any] = field(default_factory=dict[str, Any])
    about: About = field(default_factory=About)

    def __post_init__(self) -> None:
        if self.step < max(self.epoch, self.epoch_step) or self.steps_per_call < 1:
            raise SchemaError(
                f"note['run'] cannot be at step {self.step} in epoch {self.epoch}, at batch "
                f"{self.epoch_step} of it, with {self.steps_per_call} steps a call"
            )
        for reader, numbers in self.metrics.items():
            for path, array in numbers.items():
                if not is_numeric(array):
                    raise SchemaError(
                        f"note['run']['metrics'][{reader!r}][{path!r}] is not an array"
                    )

    @staticmethod
    def of(note: Mapping[str, Any], rows: Callable[[Any], list[Any]]) -> "Position | None":
        """The position in the note of a checkpoint; None if the note is not of a run.

        Args:
            note: the note in the manifest, or the result of `Position.note`.
            rows: reads a list that the checkpoint has in a separate file.

        Raises:
            SchemaError: an entry does not fit the schema.
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

    def at_start(self) -> "Position":
        """The position before the first step of the run."""
        steps = {} if self.about.start is None else self.about.start.steps
        return replace(
            self,
            step=0,
            epoch=0,
            epoch_step=0,
            num_examples=0,
            is_closed=False,
            stop=None,
            last_batch=None,
            computation={**self.computation, **({"steps": steps} if steps else {})},
            data={**self.data, "state": None, "behind": 0, "next": None},
            metrics={},
            callbacks={},
            ended_by_max_steps=False,
            is_logged=False,
            validated={},
        )

    def note(self) -> dict[str, Any]:
        """The position as the note of a checkpoint."""
        from solstice.checkpoint import held  # only runs that save load the checkpoints

        states = [[n, to_plain(s, f"{n}.state_dict()", held)] for n, s in self.callbacks.items()]
        owners = {name: vars(owner) for name, owner in self.owners.items()}
        # The wall clock, because runs of several processes are compared by it.
        now = {
            "callbacks": {},
            "owners": owners,
            "saved_at": time.time(),
            "about": asdict(self.about),
        }
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
    except Exception as error:  # any error of NumPy or base64, because the file may hold anything
        raise SchemaError(f"note['run'][{name!r}] cannot be read: {error!r:.200}") from error


def states_of(callbacks: list[Any]) -> dict[str, Any]:
    """The state of each callback by name, without empty ones."""
    states = {name: callback.state_dict() for name, callback in named(callbacks).items()}
    return {name: state for name, state in states.items() if state}


def owners_of(callbacks: list[Any]) -> dict[str, Owner]:
    """The identity of each callback, by name."""
    return {name: Owner.of(callback) for name, callback in named(callbacks).items()}


def by_path(metrics: Any) -> dict[str, Any]:
    """The arrays of metrics by path, on the host."""
    read = jax.device_get(dict(_tree.leaves_by_path(metrics)))  # one transfer
    return {path: np.asarray(leaf) for path, leaf in read.items()}
