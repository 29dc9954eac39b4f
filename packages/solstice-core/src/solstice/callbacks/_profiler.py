"""Profile a few steps."""

from os import PathLike

import jax

from solstice._arguments import whole
from solstice._callback import Callback
from solstice._console import say
from solstice._paths import check_folder, local_path
from solstice._record import Record


class Profiler(Callback):
    """`Profiler("runs/profile", start=100, steps=20)`: a trace of some training steps.

    The window opens at the end of the first compiled call after `start` steps, so that compiling is
    not in it, and closes at the end of the call in which it has `steps`: no call is cut for it.
    What to open next is told on standard error.

    Args:
        directory: where the trace goes.
        start: training steps of this run before the window, 0 or more.
        steps: how long it is at least, 1 or more.

    Raises:
        ValueError: an argument is out of range, or `directory` is a URL.
    """

    every = None
    has_side_effects = True

    def __init__(
        self, directory: str | PathLike[str], *, start: int = 100, steps: int = 20
    ) -> None:
        self.directory = local_path(directory, "directory")
        self._folder = self.directory
        self._after = whole("start", start, 0)
        self._steps = whole("steps", steps)
        self._run_began = 0
        self._began: int | None = None
        self._is_done = False

    def on_fit_start(self, record: Record) -> None:
        """Takes down where the run begins."""
        self._folder = self.directory.absolute()
        if record.mode == "train":
            check_folder(self._folder, f"Profiler({str(self.directory)!r})")
        self._run_began, self._began, self._is_done = record.step, None, record.mode != "train"

    def on_call_end(self, record: Record) -> None:
        """Opens and closes the window."""
        if record.mode != "train" or self._is_done:
            return
        if self._began is None:
            if record.step - self._run_began >= self._after:
                _wait(record)
                jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
                self._began = record.step
        elif record.step - self._began >= self._steps:
            _wait(record)
            self._close(record)

    def on_fit_end(self, record: Record) -> None:
        """Closes the window of a run that ended before it."""
        self._close(record)

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Closes the window."""
        self._close(record)

    def _close(self, record: Record) -> None:
        if self._began is None or self._is_done:
            if not self._is_done and record.mode == "train":
                say(
                    f"nothing was profiled: the run had "
                    f"{record.step - self._run_began:,} steps, and start={self._after}"
                )
            return
        jax.profiler.stop_trace()
        self._is_done = True
        traces = sorted(self._folder.glob("**/perfetto_trace.json.gz"))
        say(
            f"profiled steps {self._began + 1:,} to {record.step:,}. Open {traces[-1]} "
            f"at https://ui.perfetto.dev, or `pip install xprof` and `xprof {self._folder}`"
        )


def _wait(record: Record) -> None:
    """Until the device has done what it was given: reading a result of it waits."""
    _ = record.metrics
