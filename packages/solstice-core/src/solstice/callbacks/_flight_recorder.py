"""FlightRecorder: saves a snapshot from shortly before a failure, for replay."""

from os import PathLike

import jax

from solstice import checkpoint
from solstice._arguments import whole
from solstice._callback import Callback, Phase
from solstice._record import Record, Snapshot


class FlightRecorder(Callback):
    """`FlightRecorder("runs/a/flight")`: after a failure, save what `solstice.replay` needs.

    During a run, two snapshots of different age are kept in memory. If the run ends with an
    exception, such as that of `NaNGuard`, the older one is written, and
    `solstice.replay("runs/a/flight", exp, train_ds)` repeats the run from there to the failing
    step, in any process. Ctrl-C and SIGTERM write nothing.

    Args:
        directory: the folder to write, also in a bucket; an existing one is replaced.
        every: the fewest training steps between two snapshots, 1 or more. Use at least the `every`
            of `NaNGuard`, so that the older snapshot is from before the failing step. Each snapshot
            costs a copy of the Experiment's arrays.

    Raises:
        ValueError: `every` is not a whole number of 1 or more, or `directory` is a URL
            other than of "gs://" or "s3://".
        RuntimeError: in a run of several processes, which cannot save after one has failed.
    """

    phase = Phase.SAVE
    modes = ("train",)

    def __init__(self, directory: str | PathLike[str], *, every: int = 200) -> None:
        self.directory = checkpoint.place(directory, "directory")
        self._folder = self.directory
        # It looks at the end of calls, and so makes none shorter.
        self.every = None
        self._apart = whole("every", every, 1, "steps")
        self._held: list[tuple[int, Snapshot]] = []

    def on_fit_start(self, record: Record) -> None:
        """Drops old snapshots, and checks that the folder can be written."""
        if jax.process_count() > 1:
            raise RuntimeError(
                f"FlightRecorder({str(self.directory)!r}) works in one process, and the run has "
                f"{jax.process_count()}: after a failure of one of them, the others cannot save "
                f"their parts of the state. Use Checkpoint, and `solstice.replay` a checkpoint"
            )
        self._held, self._folder = [], checkpoint.absolute(self.directory)
        who = f"FlightRecorder({str(self.directory)!r})"
        checkpoint.check_writable(self._folder, who)

    def on_epoch_start(self, record: Record) -> None:
        """Takes the first snapshot of the run."""
        if not self._held:
            self._hold(record)

    def on_call_end(self, record: Record) -> None:
        """Takes a snapshot if the newest one is `every` steps old."""
        if self._held and record.step - self._held[-1][0] >= self._apart:
            self._hold(record)

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Writes the older snapshot: the newer one may be from after the failing step."""
        if not self._held or not isinstance(error, Exception):
            return
        step, snapshot = self._held[0]
        about = {
            "failed_at": record.step,
            "steps_per_epoch": record.steps_per_epoch,
            "error": f"{type(error).__name__}: {error}",
        }
        note = {**snapshot.without_callbacks().note, "flight": about}
        checkpoint.save(self._folder, snapshot.experiment, note=note)
        error.add_note(
            f"The run at step {step:,} is in {self._folder}. Inspect the failing step with "
            f"`solstice.replay({str(self._folder)!r}, exp, train_ds)`"
        )
        self._held = []

    def on_fit_end(self, record: Record) -> None:
        """Drops the snapshots, to free their memory."""
        self._held = []

    def _hold(self, record: Record) -> None:
        self._held = [*self._held[-1:], (record.step, record.snapshot)]
