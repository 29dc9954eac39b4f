"""Replay of a failing step, to find non-finite arrays."""

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from solstice import checkpoint
from solstice._callback import Callback
from solstice._experiment import Experiment
from solstice._finite import nonfinite
from solstice._record import Record, Stop
from solstice._schema import SchemaError, read
from solstice._trainer import Trainer
from solstice._types import Batch, Outputs
from solstice.compat import num_skipped


@dataclass(frozen=True)
class Replay:
    """`found = solstice.replay(...)`: a repeated training step and its arrays.

    Attributes:
        step: the number of the step, counted over the run.
        nonfinite: paths of arrays in the batch, the outputs and the Experiment that are NaN or
            infinite; without those of the Experiment that were so before the step. Empty if the
            step was finite.
        before, after: the Experiment before and after the step.
        batch: its batch, NumPy arrays.
        outputs: the second result of the step.
        error: the error that ended the run, or what was seen of a spike, as text.
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
    val_ds: Any = None,
    *,
    batch_size: int | None = None,
) -> Replay:
    """`print(solstice.replay("runs/a/flight", exp, train_ds))`: repeat the failing step.

    It starts from the snapshot of a `solstice.callbacks.FlightRecorder`, and runs the same program
    on the same batches, step by step, to the first step with a NaN or infinite result; with
    `FlightRecorder(on="spike")`, to the first step that `skip_spikes` skipped. You can then
    run this step by hand, `found.before.train_step(found.batch)`, for example under
    `jax.debug_nans(True)`.

    Args:
        directory: the folder of the FlightRecorder.
        experiment: an Experiment created in the same way as that of the run.
        train_ds: the data set of the run, as given to `fit`.
        val_ds: its validation set, for an Experiment whose `epoch_step` needs it.
        batch_size: as given to `fit`.

    Returns:
        The first step with a non-finite result, or the first that was skipped; if there is none,
        the last step before the run failed.

    Raises:
        CheckpointError: the folder has no recording, or that of another Experiment.
        Exception: if the run had ended by an exception of the step, the same exception.
    """
    flight = _recorded(checkpoint.place(directory, "directory"))
    watch = _Watch(flight.error, on_spike=flight.on == "spike")
    # The run may have been limited to fewer batches than the data set has.
    Trainer([watch], limit_train_batches=flight.steps_per_epoch or None).fit(
        experiment,
        train_ds,
        val_ds,
        max_steps=flight.failed_at + 1,  # a step that raised was not counted
        batch_size=batch_size,
        resume=directory,
    )
    if watch.found is None:
        raise checkpoint.CheckpointError(f"the run of {directory} failed before another step")
    return watch.found


@dataclass(frozen=True)
class _Flight:
    failed_at: int
    steps_per_epoch: int | None
    error: str
    on: str = "failure"


def _recorded(folder: Path) -> _Flight:
    """The note of a FlightRecorder."""
    note = checkpoint.manifest(folder)["note"]
    if "flight" not in note:
        raise checkpoint.CheckpointError(
            f"{folder} was not written by a FlightRecorder, which writes when a run fails"
        )
    try:
        return read(_Flight, note["flight"], "note['flight']")
    except SchemaError as error:
        raise checkpoint.CheckpointError(f"{folder / 'manifest.json'}: {error}") from error


class _Watch(Callback):
    """Records each step, and stops the run at the first non-finite, or skipped, one."""

    modes, needs = ("train",), ("batch", "experiment", "outputs")

    def __init__(self, error: str, *, on_spike: bool) -> None:
        self.found: Replay | None = None
        self._error, self._on_spike = error, on_spike
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
        if self._is_skipped(after) if self._on_spike else bad:
            raise Stop("found")

    def _is_skipped(self, after: Experiment) -> bool:
        return num_skipped(after) != num_skipped(self._before)
