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
        self._bars: dict[str, Any] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._line: list[str] = []

    def on_epoch_start(self, record: Record) -> None:
        """Opens a bar, below that of the training epoch in which a validation comes."""
        if record.mode == "train":
            self._write()
        self._began[record.mode] = time.perf_counter(), record.num_examples
        tqdm = _tqdm() if self._out.isatty() else None
        if tqdm is not None:
            self._bars[record.mode] = tqdm(
                total=record.steps_per_epoch,
                initial=record.epoch_step,
                desc=_title(record),
                unit="step",
                leave=False,
                file=self._out,
                dynamic_ncols=True,
            )

    def on_step_end(self, record: Record) -> None:
        """Moves the bar."""
        bar = self._bars.get(record.mode)
        if bar is not None:
            bar.update(record.epoch_step - bar.n)

    def on_epoch_end(self, record: Record) -> None:
        """Closes the bar and writes the line; that of an epoch with validation ends with it."""
        began, before = self._began.pop(record.mode)
        seconds = time.perf_counter() - began
        self._close(record.mode)
        if record.mode == "predict":
            return
        within = record.mode == "val" and "train" in self._began
        if within:
            self._line = [_title(record), f"step {record.step:,}"]
        elif record.mode != "val" or not record.has_validation:
            rate = (record.num_examples - before) / seconds if seconds > 0 else 0.0
            steps = record.step if record.mode == "train" else record.epoch_step
            self._line = [_title(record), f"step {steps:,}", f"{rate:,.0f} examples/s"]
        self._line += [
            f"{record.mode}/{name} {value:.4f}" for name, value in self._shown(record.metrics)
        ]
        if not (record.mode == "train" and record.has_validation):
            self._write()

    def on_fit_end(self, record: Record) -> None:
        """Closes what is open, of predictions that were not read to their end for one."""
        self._end()

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Leaves the terminal as it was."""
        self._end()

    @property
    def _out(self) -> TextIO:
        return sys.stderr if self._file is None else self._file

    def _shown(self, metrics: dict[str, Any]) -> list[tuple[str, float]]:
        scalars = [(n, v) for n, v in metrics.items() if isinstance(v, numbers.Real)]
        if self._only is None:
            return [(name, float(value)) for name, value in scalars[:_SHOWN]]
        return [(name, float(value)) for name, value in scalars if name in self._only]

    def _end(self) -> None:
        for mode in list(self._bars):
            self._close(mode)
        self._began.clear()
        self._write()

    def _close(self, mode: str) -> None:
        bar = self._bars.pop(mode, None)
        if bar is not None:
            bar.close()

    def _write(self) -> None:
        if not self._line:
            return
        text = "  ".join(self._line)
        if self._bars:  # of an epoch that goes on
            next(iter(self._bars.values())).write(text, file=self._out)
        else:
            print(text, file=self._out, flush=True)
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
