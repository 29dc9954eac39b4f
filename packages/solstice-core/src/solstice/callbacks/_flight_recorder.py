"""FlightRecorder: saves a snapshot from shortly before a failure or a spike, for replay."""

from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import jax

from solstice import checkpoint
from solstice._arguments import choice, whole
from solstice._callback import Callback, Phase
from solstice._console import say
from solstice._experiment import Experiment
from solstice._record import Record, Snapshot
from solstice.compat import num_skipped


@dataclass(frozen=True)
class _Held:
    step: int
    snapshot: Snapshot
    skipped: int


class FlightRecorder(Callback):
    """`FlightRecorder("runs/a/flight")`: after a failure, save what `solstice.replay` needs.

    During a run, two snapshots of different age are kept in memory. If the run ends with an
    exception, such as that of `NaNGuard`, the older one is written, and
    `solstice.replay("runs/a/flight", exp, train_ds)` repeats the run from there to the failing
    step, in any process. Ctrl-C and SIGTERM write nothing.

    With `on="spike"`, it also writes when `solstice.compat.skip_spikes` has skipped the first step
    of the run. It prints a line, and the run goes on. `solstice.replay` then returns the skipped
    step. A failure after that writes nothing: for both, add another FlightRecorder.

    Args:
        directory: the folder to write, also in a bucket; an existing one is replaced.
        every: the fewest training steps between two snapshots, 1 or more. Use at least the `every`
            of `NaNGuard`, so that the older snapshot is from before the failing step. Each snapshot
            costs a copy of the Experiment's arrays.
        on: "failure", or "spike" for the first skipped step too, which it looks for whenever it
            takes a snapshot, and at the end of the run.

    Raises:
        ValueError: `every` is not a whole number of 1 or more, `on` is something else, or
            `directory` is a URL other than of "gs://" or "s3://"; or, at the start of a run with
            `on="spike"`, no optimiser is one of `skip_spikes`.
        RuntimeError: in a run of several processes, which cannot save after one has failed.
    """

    phase = Phase.SAVE
    modes = ("train",)

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        every: int = 200,
        on: Literal["failure", "spike"] = "failure",
    ) -> None:
        self.directory = checkpoint.place(directory, "directory")
        self._folder = self.directory
        # It looks at the end of calls, and so makes none shorter.
        self.every = None
        self._apart = whole("every", every, 1, "steps")
        self.on = choice("on", on, ("failure", "spike"))
        self._held: list[_Held] = []
        self._is_written = False

    def on_fit_start(self, record: Record) -> None:
        """Drops old snapshots, and checks that the folder can be written."""
        if jax.process_count() > 1:
            raise RuntimeError(
                f"FlightRecorder({str(self.directory)!r}) works in one process, and the run has "
                f"{jax.process_count()}: after a failure of one of them, the others cannot save "
                f"their parts of the state. Use Checkpoint, and `solstice.replay` a checkpoint"
            )
        self._held, self._folder = [], checkpoint.absolute(self.directory)
        self._is_written = False
        if self.on == "spike" and num_skipped(record.experiment) is None:
            raise ValueError(
                'FlightRecorder(on="spike") finds no optimiser that skips spikes in the '
                "Experiment: create it with `solstice.compat.skip_spikes(optimizer)`"
            )
        who = f"FlightRecorder({str(self.directory)!r})"
        checkpoint.check_writable(self._folder, who)

    def on_epoch_start(self, record: Record) -> None:
        """Takes the first snapshot of the run."""
        if not self._held and not self._is_written:
            self._hold(record, record.snapshot)

    def on_call_end(self, record: Record) -> None:
        """Takes a snapshot if the newest one is `every` steps old."""
        if self._held and record.step - self._held[-1].step >= self._apart:
            snapshot = record.snapshot
            self._look_for_a_spike(record, snapshot.experiment)
            if not self._is_written:
                self._hold(record, snapshot)

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Writes the older snapshot: the newer one may be from after the failing step."""
        if not self._held or not isinstance(error, Exception):
            return
        error.add_note(self._write(self._held[0], record, f"{type(error).__name__}: {error}"))

    def on_fit_end(self, record: Record) -> None:
        """Looks for a spike in the last steps, and drops the snapshots, to free their memory."""
        if self._held:
            self._look_for_a_spike(record, record.experiment)
        self._held = []

    def _hold(self, record: Record, snapshot: Snapshot) -> None:
        held = _Held(record.step, snapshot, self._num_skipped(snapshot.experiment))
        self._held = [*self._held[-1:], held]

    def _num_skipped(self, experiment: Experiment) -> int:
        # It reads from the device, so only where it is needed.
        return (num_skipped(experiment) or 0) if self.on == "spike" else 0

    def _look_for_a_spike(self, record: Record, experiment: Experiment) -> None:
        """Writes the newest snapshot if steps have been skipped since."""
        before = self._held[-1]
        count = self._num_skipped(experiment) - before.skipped
        if count > 0:
            seen = (
                f"of steps {before.step + 1:,} to {record.step:,}, {count:,} were skipped, because "
                f"their gradients were spikes"
            )
            say(f"{seen}. {self._write(before, record, seen, on='spike')}")

    def _write(self, held: _Held, record: Record, error: str, **more: Any) -> str:
        """Writes a snapshot; the line that says how to use it."""
        about = {
            "failed_at": record.step,
            "steps_per_epoch": record.steps_per_epoch,
            "error": error,
            **more,
        }
        note = {**held.snapshot.without_callbacks().note, "flight": about}
        checkpoint.save(self._folder, held.snapshot.experiment, note=note)
        self._held, self._is_written = [], True
        which = "skipped" if more else "failing"
        return (
            f"The run at step {held.step:,} is in {self._folder}. Inspect the {which} step with "
            f"`solstice.replay({str(self._folder)!r}, exp, train_ds)`"
        )
