"""End a run whose numbers are no longer finite."""

from solstice._arguments import whole
from solstice._callback import Callback, Phase
from solstice._finite import nonfinite
from solstice._record import Record


class NaNGuard(Callback):
    """`NaNGuard(every=100)`: end a run as soon as its weights are NaN or infinite.

    Every so many steps it looks at all arrays of the Experiment that were finite when the run
    began; one number of each is read back. It comes before what saves, so with a `Checkpoint` at
    the same steps no bad checkpoint is written, and `fit(..., resume="last")` goes back to the last
    good one, with a smaller learning rate for instance. To go on without the updates that are not
    finite, there is `solstice.compat.skip_nonfinite`.

    Args:
        every: training steps from one look to the next, 1 or more. Each costs a copy of the arrays.

    Raises:
        ValueError: `every` is not a whole number from 1 on.
        FloatingPointError: in training, naming the arrays.
    """

    phase = Phase.MONITOR
    needs = ("experiment",)

    def __init__(self, *, every: int = 100) -> None:
        self.every = whole("every", every, 1, "steps")
        self._expected: set[str] = set()

    def on_fit_start(self, record: Record) -> None:
        """Takes down what is not finite from the beginning, such as the best of no losses."""
        self._expected = set(nonfinite(record.experiment))

    def on_step_end(self, record: Record) -> None:
        """Looks."""
        if record.mode == "train":
            self._look(record)

    def on_epoch_end(self, record: Record) -> None:
        """Looks, before the epoch is saved."""
        if record.mode == "train":
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
