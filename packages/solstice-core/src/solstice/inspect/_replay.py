"""Run the step at which a run failed once more, and see what was not finite."""

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from solstice import checkpoint
from solstice._callback import Callback
from solstice._experiment import Experiment
from solstice._finite import nonfinite
from solstice._paths import local_path
from solstice._record import Record, Stop
from solstice._run._snapshot import Position
from solstice._schema import SchemaError, read
from solstice._trainer import Trainer
from solstice._types import Batch, Outputs


@dataclass(frozen=True)
class Replay:
    """`solstice.replay(...)`: a step, run once more.

    Attributes:
        step: its number, counted over the run.
        nonfinite: the arrays that are NaN or infinite after it, and were not before: of the batch,
            the outputs and the Experiment, by their paths. Empty if there was no such step.
        before, after: the Experiment before and after it.
        batch: its batch, NumPy arrays.
        outputs: what it returned beside the Experiment.
        error: the error by which the run had ended.
    """

    step: int
    nonfinite: list[str]
    before: Experiment = field(repr=False)
    after: Experiment = field(repr=False)
    batch: Batch = field(repr=False)
    outputs: Outputs = field(repr=False)
    error: str


def replay(
    directory: str | PathLike[str],
    experiment: Experiment,
    train_ds: Any,
    *,
    batch_size: int | None = None,
) -> Replay:
    """`print(solstice.replay("runs/a/flight", exp, train_ds))`: run the fatal step again.

    Begins with the snapshot that a `solstice.callbacks.FlightRecorder` has written, and goes on
    step by step, by the program of the run and its batches, to the first step after which
    something is NaN or infinite. `solstice.experiments` and your own steps can then be run by
    hand: `replay.before.train_step(replay.batch)`, under `jax.debug_nans(True)` for instance.

    Args:
        directory: the folder of the flight recorder.
        experiment: an Experiment made as that of the run was.
        train_ds: the data set, as it was given to `fit`.
        batch_size: as it was given to `fit`.

    Returns:
        The first step after which something is not finite; if there is none, the last before the
        run failed.

    Raises:
        CheckpointError: there is nothing recorded in the folder, or of another Experiment.
        Exception: whatever the step raises, where the run ended by that.
    """
    flight, limit = _recorded(local_path(directory, "directory"))
    watch = _Watch(flight.error)
    Trainer([watch], limit_train_batches=limit).fit(
        experiment,
        train_ds,
        max_steps=flight.failed_at + 1,
        batch_size=batch_size,
        resume=directory,
    )
    if watch.found is None:
        raise checkpoint.CheckpointError(f"the run of {directory} failed before another step")
    return watch.found


@dataclass(frozen=True)
class _Flight:
    failed_at: int
    error: str


def _recorded(folder: Path) -> tuple[_Flight, int | None]:
    """What a FlightRecorder has written, and the batches of an epoch."""
    note = checkpoint.manifest(folder)["note"]
    if "flight" not in note:
        raise checkpoint.CheckpointError(
            f"{folder} was not written by a FlightRecorder, which writes when a run fails"
        )
    try:
        position = Position.of(note, lambda _: [])
        limit = None if position is None else position.steps_per_epoch or None
        return read(_Flight, note["flight"], "note['flight']"), limit
    except SchemaError as error:
        raise checkpoint.CheckpointError(f"{folder / 'manifest.json'}: {error}") from error


class _Watch(Callback):
    """Looks at each step, and stops at the first that is not finite."""

    needs = ("batch", "experiment", "outputs")

    def __init__(self, error: str) -> None:
        self.found: Replay | None = None
        self._error = error
        self._before: Any = None
        self._expected: set[str] = set()

    def on_step_start(self, record: Record) -> None:
        self._before = record.experiment
        self._expected = set(nonfinite(self._before))

    def on_step_end(self, record: Record) -> None:
        after = record.experiment
        new = [path for path in nonfinite(after) if path not in self._expected]
        bad = [
            *(f"batch{path}" for path in nonfinite(record.batch)),
            *(f"outputs{path}" for path in nonfinite(record.outputs)),
            *(f"experiment{path}" for path in new),
        ]
        self.found = Replay(
            record.step, bad, self._before, after, record.batch, record.outputs, self._error
        )
        if bad:
            raise Stop("found")
