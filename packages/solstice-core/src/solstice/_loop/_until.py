"""Until: ends a replay after a step of the run, with the run at this moment."""

from solstice._callback import Callback, Phase
from solstice._record import Record, Snapshot, Stop


class Until(Callback):
    """`Until(137)`: takes a snapshot before step 138, and ends the run.

    If an epoch ends with step 137, the snapshot is taken after its `epoch_step`. Give the run one
    step more, because the length of an epoch may be known only when its data end.

    Attributes:
        snapshot: the run at this moment; None if it ended earlier.
    """

    modes = ("train",)
    needs = ("snapshot",)
    phase = Phase.SAVE

    def __init__(self, step: int) -> None:
        self.every = max(step, 1)
        self.snapshot: Snapshot | None = None
        self._step = step

    def is_there(self, at: Record) -> bool:
        """Whether this moment is before the first batch of step 138, for certain."""
        may_end = at.steps_per_epoch is None or at.epoch_step == at.steps_per_epoch
        return at.step == self._step and (at.epoch_step == 0 or not may_end)

    def on_step_end(self, record: Record) -> None:
        """Takes the snapshot; ends the run unless the epoch may end here, which comes first."""
        if record.step == self._step:
            self.snapshot = record.snapshot
            self._end_if(self.is_there(record))

    def on_epoch_end(self, record: Record) -> None:
        """Takes the snapshot again, if the epoch ends with the step and not by `on_step_end`."""
        if record.step == self._step and not self.is_there(record):
            self.snapshot = record.snapshot
            self._end_if(True)

    def _end_if(self, is_there: bool) -> None:
        if is_there:
            raise Stop(f"the run is at step {self._step:,}")
