"""Show how far a run is."""

import importlib
import importlib.util
import math
import numbers
import os
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any, TextIO, cast

from solstice._arguments import names, not_negative
from solstice._callback import Callback
from solstice._console import encodable, is_terminal, write_line
from solstice._record import Record

_SHOWN = 2
"""Metrics in a line, where the user does not say which."""

_BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left, {rate_fmt}{postfix}]"
)

_NO_BAR = "{desc}: {n_fmt}/{total_fmt} [{remaining} left, {rate_fmt}{postfix}]"
"""Where the terminal is too narrow for a bar beside the metrics."""

_SHORTEST, _DEFAULT = 4, 10
"""Characters of a bar: at the least, and of tqdm's where no width is told."""

_FIRST_LINE = 30.0
"""Seconds until an epoch whose output is no terminal tells how far it is."""

_LINES_APART = 600.0
"""Seconds between two such lines at the most: the pauses double until then."""


class ProgressBar(Callback):
    """`ProgressBar()`: bars in a terminal or a notebook, and a line for each epoch that has ended.

    A bar for the epochs, one for the steps of the epoch, one for a validation in it: with rate,
    time left, and the metrics of the epoch so far, which are read back twice a second and not at
    each step. Where the output is no terminal (a file, a CI log), or tqdm is not installed, only
    lines are written: one for each epoch, and in a long epoch one after 30 seconds, after a minute
    more, and so on, up to one in ten minutes.

    Args:
        seconds: from one update of the metrics to the next.
        only: names of the metrics to show, without the mode; the first two by default.
        file: where to write; standard error by default.

    Raises:
        ValueError: `seconds` is negative, or not a number.
        TypeError: `only` holds no names, or `file` cannot be written to.
    """

    every = None

    def __init__(
        self,
        *,
        seconds: float = 0.5,
        only: Collection[str] | None = None,
        file: TextIO | None = None,
    ) -> None:
        self._seconds = not_negative("seconds", seconds)
        self._only = names("only", only)
        if file is not None and not callable(getattr(cast("Any", file), "write", None)):
            raise TypeError(f"file must be an open file, such as sys.stdout; it is {file!r:.60}")
        self._file = file
        self._bars: dict[str, Any] = {}
        self._clocks: dict[str, _Clock] = {}
        self._line: list[str] = []

    def on_fit_start(self, record: Record) -> None:
        """Opens the bar of the epochs, where there are several."""
        if record.mode == "train" and record.num_epochs is not None and record.num_epochs > 1:
            self._open("run", "epochs", record.num_epochs, record.epoch, "epoch")

    def on_epoch_start(self, record: Record) -> None:
        """Opens a bar, below that of the training epoch in which a validation comes."""
        if record.mode == "train":
            self._write()
        self._clocks[record.mode] = _Clock(record)
        self._open(record.mode, _title(record), record.steps_per_epoch, record.epoch_step, "step")

    def on_call_end(self, record: Record) -> None:
        """Moves the bar, and shows the metrics when it is time."""
        clock, bar = self._clocks[record.mode], self._bars.get(record.mode)
        if bar is None:
            if clock.wants_line(time.monotonic()):
                self._print("  ".join(self._how_far(record, clock)))
            return
        if record.mode != "predict" and clock.wants_metrics(time.monotonic(), self._seconds):
            # Reading them waits for the device, so that the figures are of finished steps.
            self._show(bar, self._shown(record.metrics))
        bar.update(record.epoch_step - bar.n)

    def on_epoch_end(self, record: Record) -> None:
        """Closes the bar and writes the line; that of an epoch with validation ends with it."""
        clock = self._clocks.pop(record.mode)
        self._close(record.mode)
        if record.mode == "predict":
            return
        within = record.mode == "val" and "train" in self._clocks
        if within:
            self._line = [_title(record), f"step {record.step:,}"]
        elif record.mode != "val" or not record.has_validation:
            steps = record.step if record.mode == "train" else record.epoch_step
            self._line = [_title(record), f"step {steps:,}", clock.rate(record)]
        self._line += [f"{record.mode}/{text}" for text in self._shown(record.metrics)]
        if record.mode == "train" and "run" in self._bars:
            self._bars["run"].update(record.epoch + 1 - self._bars["run"].n)
        if not (record.mode == "train" and record.has_validation):
            self._write()

    def on_fit_end(self, record: Record) -> None:
        """Closes what is open, of predictions that were not read to their end for one."""
        self._end()

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Leaves the terminal as it was."""
        self._end()

    @property
    def _out(self) -> TextIO | None:
        return sys.stderr if self._file is None else self._file

    def _open(self, name: str, title: str, total: int | None, start: int, unit: str) -> None:
        tqdm = _tqdm(self._out)
        if tqdm is not None:
            self._bars[name] = tqdm(
                total=total,
                initial=start,
                desc=encodable(title, self._out),
                unit=unit,
                leave=False,
                bar_format=_BAR if total else None,
                file=self._out,
                **_width(self._out),
            )

    def _show(self, bar: Any, metrics: list[str]) -> None:
        """Metrics beside a bar; where there is no room the bar goes, and then the last of them."""
        columns, whole = _columns(self._out), _BAR if bar.total else None
        metrics = [encodable(metric, self._out) for metric in metrics]
        shorter = [metrics[:count] for count in range(len(metrics), -1, -1)]
        for form, shown in [(whole, metrics), *((_NO_BAR if whole else None, s) for s in shorter)]:
            bar.bar_format = form
            bar.set_postfix_str("  ".join(shown), refresh=False)
            if columns is None or _length(bar) < columns:  # the last one stays free
                return

    def _how_far(self, record: Record, clock: "_Clock") -> list[str]:
        """A line from within an epoch."""
        of = "" if record.steps_per_epoch is None else f"/{record.steps_per_epoch:,}"
        left = clock.left(record)
        return [
            _title(record),
            f"{record.epoch_step:,}{of} steps",
            clock.rate(record),
            *([] if left is None else [f"{_duration(left)} left"]),
            *([] if record.mode == "predict" else self._shown(record.metrics)),
        ]

    def _shown(self, metrics: Mapping[str, Any]) -> list[str]:
        scalars = {n: v for n, v in metrics.items() if isinstance(v, numbers.Real)}
        names = list(scalars)[:_SHOWN] if self._only is None else self._only
        return [f"{name} {float(scalars[name]):.4f}" for name in names if name in scalars]

    def _end(self) -> None:
        for name in reversed(list(self._bars)):
            self._close(name)
        self._clocks.clear()
        self._write()

    def _close(self, name: str) -> None:
        bar = self._bars.pop(name, None)
        if bar is not None:
            bar.close()

    def _write(self) -> None:
        if self._line:
            line = [encodable(part, self._out) for part in self._line]
            self._print(_fitted(line, _columns(self._out)))
        self._line = []

    def _print(self, text: str) -> None:
        if self._bars:  # which must move down a line
            text = encodable(text, self._out)
            next(iter(self._bars.values())).write(text, file=self._out)
        else:
            write_line(text, self._out)


class _Clock:
    """Since when a pass goes on, and when it is next told of."""

    def __init__(self, record: Record) -> None:
        self._began = time.monotonic()
        self._examples = record.num_examples
        self._steps = record.epoch_step
        self._next_line, self._pause = self._began + _FIRST_LINE, _FIRST_LINE
        self._next_metrics = -math.inf

    def wants_metrics(self, now: float, seconds: float) -> bool:
        if now < self._next_metrics:
            return False
        self._next_metrics = now + seconds
        return True

    def wants_line(self, now: float) -> bool:
        if now < self._next_line:
            return False
        self._pause = min(2 * self._pause, _LINES_APART)
        self._next_line = now + self._pause
        return True

    def rate(self, record: Record) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        return f"{(record.num_examples - self._examples) / seconds:,.0f} examples/s"

    def left(self, record: Record) -> float | None:
        """Seconds to the end of the pass, as fast as until now."""
        done = record.epoch_step - self._steps
        if record.steps_per_epoch is None or done <= 0:
            return None
        return (
            (time.monotonic() - self._began) * (record.steps_per_epoch - record.epoch_step) / done
        )


def _title(record: Record) -> str:
    if record.mode == "train" or record.has_validation:
        of = "" if record.num_epochs is None else f"/{record.num_epochs}"
        name = f"epoch {record.epoch + 1}{of}"
        return name if record.mode == "train" else f"{name} {record.mode}"
    return record.mode


def _duration(seconds: float) -> str:
    """`1:02:03`, or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _tqdm(out: TextIO | None) -> Any:
    """What draws a bar to `out`; None where only lines are to be written."""
    in_notebook = out is sys.stderr and _in_notebook()
    if not in_notebook and not is_terminal(out):
        return None
    rich = in_notebook and importlib.util.find_spec("ipywidgets") is not None
    try:
        return importlib.import_module("tqdm.notebook" if rich else "tqdm").tqdm
    except ImportError:
        return None


def _width(out: TextIO | None) -> dict[str, Any]:
    """How wide tqdm is to draw: what it finds itself, but that it finds 0 where nothing is told."""
    try:
        is_told = os.get_terminal_size(cast("TextIO", out).fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        is_told = True
    return {"dynamic_ncols": True} if is_told else {"ncols": 80}


def _length(bar: Any) -> int:
    """Of the line of a bar at its end, in characters, with the shortest bar in it."""
    now = bar.format_dict
    rate = max(now["rate"] or 0.0, 100.0)  # before it is known, and below, it takes as much room
    line = bar.format_meter(**{**now, "n": now["total"] or now["n"], "rate": rate, "ncols": None})
    spare = _DEFAULT - _SHORTEST if bar.bar_format == _BAR else 0
    return len(line) - spare


def _columns(out: TextIO | None) -> int | None:
    """The width of a terminal; None of what is none."""
    if out is sys.stderr and _in_notebook():
        return None
    try:
        return os.get_terminal_size(cast("TextIO", out).fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None


def _fitted(parts: list[str], columns: int | None) -> str:
    """One line of a terminal: in short if it is too long, and then cut off."""
    text = "  ".join(parts)
    if columns is None or len(text) <= columns:
        return text
    text = "  ".join(_in_short(parts))
    return text if len(text) <= columns else f"{text[: max(columns - 3, 0)]}..."


def _in_short(parts: list[str]) -> list[str]:
    """`loss 0.4532 (val 0.5012)`, and no rate."""
    found: dict[str, str] = {}
    for part in parts:
        mode, _, metric = part.partition("/")
        name, _, value = metric.rpartition(" ")
        if mode == "train":
            found[name] = metric
        elif mode == "val" and name in found:
            found[name] += f" (val {value})"
        elif not part.endswith("examples/s"):
            found[part] = part
    return list(found.values())


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
