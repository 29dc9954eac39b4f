"""Keep what is needed to run a fatal step again."""

from os import PathLike

from solstice import checkpoint
from solstice._arguments import whole
from solstice._callback import Callback, Phase
from solstice._paths import local_path
from solstice._record import Record, Snapshot
from solstice._run._snapshot import without_callbacks
from solstice.checkpoint._files import check_store
from solstice.checkpoint._save import check_replaceable


class FlightRecorder(Callback):
    """`FlightRecorder("runs/a/flight")`: keep what is needed to run a fatal step again.

    While a run goes on, two snapshots of it are held in memory, of different ages. If it ends by
    an exception, that of `NaNGuard` for instance, the older is written, and
    `solstice.replay("runs/a/flight", exp, train_ds)` goes from there to the step, in any process.
    Ctrl-C and SIGTERM write nothing.

    Args:
        directory: the folder to write, which is replaced.
        every: training steps from one snapshot to the next, at least; no fewer than the `every` of
            a `NaNGuard`. Each costs a copy of the Experiment's arrays.

    Raises:
        ValueError: `every` is not a whole number from 1 on, or `directory` is a URL.
    """

    phase = Phase.SAVE

    def __init__(self, directory: str | PathLike[str], *, every: int = 200) -> None:
        self.directory = local_path(directory, "directory")
        self._folder = self.directory
        self.every = None
        self._apart = whole("every", every, 1, "steps")
        self._held: list[tuple[int, Snapshot]] = []

    def on_fit_start(self, record: Record) -> None:
        """Forgets the run before."""
        self._held, self._folder = [], self.directory.absolute()
        if record.mode == "train":
            check_store(self._folder.parent, f"FlightRecorder({str(self.directory)!r})")
            check_replaceable(self._folder)

    def on_epoch_start(self, record: Record) -> None:
        """Takes the first snapshot."""
        if record.mode == "train" and not self._held:
            self._hold(record)

    def on_call_end(self, record: Record) -> None:
        """Takes a snapshot when it is time."""
        if self._held and record.step - self._held[-1][0] >= self._apart:
            self._hold(record)

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Writes the older of the two."""
        if not self._held or not isinstance(error, Exception):
            return
        step, snapshot = self._held[0]
        about = {"failed_at": record.step, "error": f"{type(error).__name__}: {error}"}
        note = {**without_callbacks(snapshot.note), "flight": about}
        checkpoint.save(self._folder, snapshot.experiment, note=note)
        error.add_note(
            f"The run at step {step:,} is in {self._folder}. See the step that failed by "
            f"`solstice.replay({str(self._folder)!r}, exp, train_ds)`"
        )
        self._held = []

    def on_fit_end(self, record: Record) -> None:
        """Lets the memory go."""
        self._held = []

    def _hold(self, record: Record) -> None:
        self._held = [*self._held[-1:], (record.step, record.snapshot)]
