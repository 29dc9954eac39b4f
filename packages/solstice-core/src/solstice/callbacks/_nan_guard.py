"""NaNGuard: ends a run when its arrays become NaN or infinite."""

from solstice._arguments import whole
from solstice._callback import Callback, Phase
from solstice._finite import nonfinite
from solstice._record import Record


class NaNGuard(Callback):
    """`NaNGuard(every=100)`: end a run when its weights become NaN or infinite.

    Every `every` steps it checks all arrays of the Experiment that were finite at the start of the
    run, and reads back one number per array. It runs before callbacks that save. With a
    `Checkpoint` at the same steps, no bad checkpoint is written, and `fit(..., resume="last")`
    returns to the last good one, for example with a smaller learning rate. To skip non-finite
    updates and continue, use `solstice.compat.skip_nonfinite`.

    Args:
        every: training steps from one check to the next, 1 or more. Each reads all arrays.

    Raises:
        ValueError: `every` is not a whole number of 1 or more.
        FloatingPointError: in training, an array is NaN or infinite; the message names it.
    """

    phase = Phase.MONITOR
    modes = ("train",)
    needs = ("experiment",)

    def __init__(self, *, every: int = 100) -> None:
        self.every = whole("every", every, 1, "steps")
        self._expected: set[str] = set()

    def on_fit_start(self, record: Record) -> None:
        """Notes arrays that are not finite at the start, such as an initial best loss of inf."""
        self._expected = set(nonfinite(record.experiment))

    def on_step_end(self, record: Record) -> None:
        """Raises a FloatingPointError if an array has become NaN or infinite."""
        self._look(record)

    def on_epoch_end(self, record: Record) -> None:
        """Checks again at the end of an epoch, because it may be saved."""
        self._look(record)

    def _look(self, record: Record) -> None:
        bad = [path for path in nonfinite(record.experiment) if path not in self._expected]
        if bad:
            named = ", ".join(f"`{path}`" for path in bad[:5]) + (" ..." if bad[5:] else "")
            raise FloatingPointError(
                f"at step {record.step:,}, or up to {self.every:,} before, {named} became NaN or "
                f"infinite. Lower the learning rate, clip the gradient, or skip such updates: "
                f"`solstice.compat.skip_nonfinite(optimizer)`. With a FlightRecorder among the "
                f"callbacks, `solstice.replay` shows the step"
            )
