"""Profiler: a trace of some training steps for Perfetto or XProf."""

from os import PathLike

import jax

from solstice._arguments import whole
from solstice._callback import Callback
from solstice._console import say
from solstice._paths import check_folder, local_path
from solstice._record import Record


class Profiler(Callback):
    """`Profiler("runs/profile", start=100, steps=20)`: trace some training steps.

    A compiled call ends after `start` steps, where the trace starts, and one ends after `steps`
    more, where it stops. Calls within are not shortened. With `start=0` the trace includes the
    compilation. At the end, the logger "solstice" gets the line that opens the trace.

    Args:
        directory: the folder for the trace.
        start: training steps of this run before the trace, 0 or more.
        steps: training steps in the trace, 1 or more.

    Raises:
        ValueError: an argument is out of range, or `directory` is a URL.
    """

    every = None
    modes = ("train",)
    has_side_effects = True
    processes = "first"

    def __init__(
        self, directory: str | PathLike[str], *, start: int = 100, steps: int = 20
    ) -> None:
        self.directory = local_path(directory, "directory")
        self._folder = self.directory
        self._after = whole("start", start, 0)
        self._steps = whole("steps", steps)
        self.call_ends = (self._after, self._after + self._steps)
        self._run_began = 0
        self._began: int | None = None
        self._is_done = False

    def on_fit_start(self, record: Record) -> None:
        """Notes the first step of the run, and checks that the folder can be written."""
        self._folder = self.directory.absolute()
        check_folder(self._folder, f"Profiler({str(self.directory)!r})")
        self._run_began, self._began, self._is_done = record.step, None, False

    def on_epoch_start(self, record: Record) -> None:
        """Starts the trace if it has the first step of the run."""
        if self._after == 0 and self._began is None:
            self._start(record)

    def on_call_end(self, record: Record) -> None:
        """Starts or stops the trace."""
        if self._is_done:
            return
        if self._began is None:
            if record.step - self._run_began >= self._after:
                _wait(record)  # so that the trace has no earlier steps
                self._start(record)
        elif record.step - self._began >= self._steps:
            _wait(record)
            self._close(record)

    def on_fit_end(self, record: Record) -> None:
        """Stops the trace if the run has ended before `steps`."""
        self._close(record)

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Stops the trace, because the profiler of JAX is global."""
        self._close(record)

    def _start(self, record: Record) -> None:
        jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
        self._began = record.step

    def _close(self, record: Record) -> None:
        if self._began is None or self._is_done:
            if not self._is_done:
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
    """Waits for the device: reading the metrics needs the results of all dispatched steps."""
    _ = record.metrics
