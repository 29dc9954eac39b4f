"""Show how far a run is."""

import importlib
import numbers
import sys
import time
from collections.abc import Collection
from typing import Any, TextIO

from solstice._callback import Callback, Record

_SHOWN = 2
"""Metrics in a line, where the user does not say which."""


class ProgressBar(Callback):
    """`ProgressBar()`: a bar for each epoch in a terminal, and a line for each that has ended.

    Where the output is no terminal (a file, a CI log), or tqdm is not installed, only the lines
    are written. The line has the epoch, the steps so far, examples per second of training, and
    the metrics of training and validation.

    Args:
        every: training steps between two updates of the bar.
        only: names of the metrics to show, without the mode; the first two by default.
        file: where to write; standard error by default.
    """

    may_stop = False

    def __init__(
        self,
        *,
        every: int = 1,
        only: Collection[str] | None = None,
        file: TextIO | None = None,
    ) -> None:
        self.every = every
        self._only = (only,) if isinstance(only, str) else only
        self._file = file
        self._bar: Any = None
        self._line: list[str] = []
        self._began = 0.0

    def on_epoch_start(self, record: Record) -> None:
        """Opens a bar."""
        self._began = time.perf_counter()
        tqdm = _tqdm() if self._out.isatty() else None
        if tqdm is not None:
            self._bar = tqdm(
                total=record.steps_per_epoch,
                desc=_title(record),
                unit="step",
                leave=False,
                file=self._out,
                dynamic_ncols=True,
            )

    def on_step_end(self, record: Record) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(record.epoch_step - self._bar.n)

    def on_epoch_end(self, record: Record) -> None:
        """Closes the bar and writes the line; that of an epoch with validation ends with it."""
        seconds = time.perf_counter() - self._began
        self._close()
        if record.mode == "predict":
            return
        if record.mode != "val" or not record.has_validation:
            rate = record.num_examples / seconds if seconds > 0 else 0.0
            steps = record.step if record.mode == "train" else record.epoch_step
            self._line = [_title(record), f"step {steps:,}", f"{rate:,.0f} examples/s"]
        self._line += [
            f"{record.mode}/{name} {value:.4f}" for name, value in self._shown(record.metrics)
        ]
        if not (record.mode == "train" and record.has_validation):
            self._write()

    def on_fit_end(self, record: Record) -> None:
        """Closes what is open, of predictions that were not read to their end for one."""
        self._close()
        self._write()

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Leaves the terminal as it was."""
        self._close()
        self._write()

    @property
    def _out(self) -> TextIO:
        return sys.stderr if self._file is None else self._file

    def _shown(self, metrics: dict[str, Any]) -> list[tuple[str, float]]:
        scalars = [(n, v) for n, v in metrics.items() if isinstance(v, numbers.Real)]
        if self._only is None:
            return [(name, float(value)) for name, value in scalars[:_SHOWN]]
        return [(name, float(value)) for name, value in scalars if name in self._only]

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write(self) -> None:
        if self._line:
            print("  ".join(self._line), file=self._out, flush=True)
            self._line = []


def _title(record: Record) -> str:
    if record.mode == "train" or record.has_validation:
        of = "" if record.num_epochs is None else f"/{record.num_epochs}"
        name = f"epoch {record.epoch + 1}{of}"
        return name if record.mode == "train" else f"{name} {record.mode}"
    return record.mode


def _tqdm() -> Any:
    try:
        return importlib.import_module("tqdm").tqdm
    except ImportError:
        return None
