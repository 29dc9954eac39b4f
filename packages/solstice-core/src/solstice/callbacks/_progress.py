"""ProgressBar: progress bars and a line for each epoch."""

import importlib
import importlib.util
import itertools
import math
import numbers
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TextIO, cast

from solstice._arguments import names, not_negative
from solstice._bounds import is_bound
from solstice._callback import Callback
from solstice._console import encodable, is_terminal, write_line
from solstice._per_member import is_vector, summary
from solstice._record import Record

_SHOWN = 2
"""Number of metrics in a line by default."""

_BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left, {rate_fmt}{postfix}]"
)

_WIDE = 120
"""Columns for a line with all metrics; with fewer, it shows the first one of each mode."""

_SPARE = 6
"""Characters that a bar can do without: tqdm counts 10 where it does not know the width."""

_TOGETHER = 0.1
"""Seconds between two writings of lines above bars, because tqdm draws all bars again."""

_FIRST_LINE = 30.0
"""Seconds until the first progress line within an epoch, if the output is not a terminal."""

_LINES_APART = 600.0
"""The longest pause between two such lines in seconds; pauses double until then."""


class ProgressBar(Callback):
    """`ProgressBar()`: progress bars in a terminal or a notebook, and a line after each epoch.

    There are bars for the epochs, for the steps of the epoch, and for its validation. They show
    rate, remaining time and the metrics of the epoch so far, which are read back twice a second
    rather than at each step. If the output is not a terminal (a file, a CI log), or tqdm is not
    installed, only lines are written: one per epoch, and within a long epoch one after 30 seconds,
    the next after another minute, and so on, up to one in ten minutes. Of a population, a metric
    is that of its best member, followed by the median.

    Args:
        seconds: time between two updates of the metrics, 0 or more.
        only: names of the metrics to show, without the mode; the first two by default.
        file: an open text file for the output; standard error by default.

    Raises:
        ValueError: `seconds` is negative, or not a number.
        TypeError: `only` does not contain names, or `file` has no method `write`.
    """

    every = None
    waits_for_device = False  # it reads metrics where it measures time
    processes = "first"

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
        self._next_metrics: dict[str, float] = {}  # by mode, because an epoch may be short
        self._line: list[str | Record] = []  # the metrics of a record are read as late as possible
        self._lines: list[list[str | Record]] = []
        self._written = -math.inf

    def on_fit_start(self, record: Record) -> None:
        """Opens the bar of the epochs if there are several."""
        self._next_metrics.clear()
        if record.mode == "train" and record.num_epochs is not None and record.num_epochs > 1:
            self._open("run", "epochs", record.num_epochs, record.epoch, "epoch")

    def on_epoch_start(self, record: Record) -> None:
        """Opens the bar of an epoch or an evaluation."""
        if record.mode == "train":
            self._write()
        self._clocks[record.mode] = _Clock(record)
        self._open(record.mode, _title(record), record.steps_per_epoch, record.epoch_step, "step")

    def on_call_end(self, record: Record) -> None:
        """Advances the bar, and updates the metrics every `seconds`."""
        self._flush(at_once=False)
        clock, bar = self._clocks[record.mode], self._bars.get(record.mode)
        if bar is None:
            if clock.wants_line(time.monotonic()):
                self._print("  ".join(self._how_far(record, clock)))
            return
        if record.mode != "predict" and self._wants_metrics(record.mode, time.monotonic()):
            # Reading metrics waits for the device, so the bar shows finished steps.
            self._show(bar, self._shown(record.metrics))
        bar.update(record.epoch_step - bar.n)

    def on_epoch_end(self, record: Record) -> None:
        """Closes the bar and writes the line; with validation, its metrics end the line."""
        clock = self._clocks.pop(record.mode)
        self._close(record.mode)
        if record.mode == "predict":
            return
        within = record.mode == "val" and "train" in self._clocks
        if within:
            self._line = [_title(record), f"step {record.step:,}"]
        elif record.mode != "val" or not record.has_validation:
            _ = record.metrics  # waits for the device, so that the rate is that of finished steps
            steps = record.step if record.mode == "train" else record.epoch_step
            self._line = [_title(record), f"step {steps:,}", clock.rate(record)]
        self._line.append(record.only("metrics"))
        if record.mode == "train" and "run" in self._bars:
            self._bars["run"].update(record.epoch + 1 - self._bars["run"].n)
        if not (record.mode == "train" and record.has_validation):
            self._write()

    def on_fit_end(self, record: Record) -> None:
        """Closes open bars, such as that of predictions that were not read to the end."""
        self._end()

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Closes open bars, and writes the line so far."""
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

    def _wants_metrics(self, mode: str, now: float) -> bool:
        is_due = now >= self._next_metrics.get(mode, -math.inf)
        if is_due:
            self._next_metrics[mode] = now + self._seconds
        return is_due

    def _show(self, bar: Any, metrics: list[str]) -> None:
        """Shows the metrics that fit beside a bar, because tqdm would cut digits off the others."""
        columns, now = _columns(self._out), bar.format_dict
        rate = max(now["rate"] or 0.0, 1000.0)  # an unknown or lower one takes no more characters
        last = {**now, "n": now["total"] or now["n"], "rate": rate, "ncols": None}
        for count in range(len(metrics), -1, -1):
            shown = [encodable(metric, self._out) for metric in metrics[:count]]
            bar.set_postfix_str("  ".join(shown), refresh=False)
            whole = bar.format_meter(**last | {"postfix": bar.postfix})
            if not columns or len(whole) - _SPARE < columns:  # the last column stays free
                return

    def _how_far(self, record: Record, clock: "_Clock") -> list[str]:
        """The parts of a progress line within an epoch."""
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
        if self._only is None:
            shown = (n for n, v in metrics.items() if _is_shown(v) and not is_bound(n, metrics))
            chosen = [(name, metrics[name]) for name in itertools.islice(shown, _SHOWN)]
        else:
            there = [(name, metrics.get(name)) for name in self._only]
            chosen = [(name, value) for name, value in there if _is_shown(value)]
        return [f"{name} {_text(name, value)}" for name, value in chosen]

    def _end(self) -> None:
        for name in reversed(list(self._bars)):
            self._close(name)
        self._clocks.clear()
        self._write()
        self._flush(at_once=True)

    def _close(self, name: str) -> None:
        bar = self._bars.pop(name, None)
        if bar is not None:
            bar.close()

    def _write(self) -> None:
        """Writes the line of an epoch; those of short epochs are written together."""
        if self._line:
            self._lines.append(self._line)
            self._line = []
            # Without bars at once, because other lines of a file must not come in between.
            self._flush(at_once=not self._bars)

    def _flush(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if self._lines and (at_once or now - self._written >= _TOGETHER):
            lines, self._lines, self._written = self._lines, [], now
            self._print("\n".join("  ".join(self._parts(line)) for line in lines))

    def _parts(self, line: list[str | Record]) -> Iterator[str]:
        count = None if (_columns(self._out) or _WIDE) >= _WIDE else 1
        for part in line:
            if isinstance(part, str):
                yield part
            else:
                yield from (f"{part.mode}/{text}" for text in self._shown(part.metrics)[:count])

    def _print(self, text: str) -> None:
        if self._bars:  # tqdm must write it, to move the bars down a line
            text = encodable(text, self._out)
            next(iter(self._bars.values())).write(text, file=self._out)
        else:
            write_line(text, self._out)


def _is_shown(value: object) -> bool:
    return isinstance(value, numbers.Real) or is_vector(value)


def _text(name: str, value: Any) -> str:
    """A number; or of a population, the best one and the median."""
    if not is_vector(value):
        return f"{float(value):.4f}"
    both = summary(name, value)
    return f"{both['best']:.4f} (median {both['median']:.4f})"


class _Clock:
    """The start of a pass over the data, and the time of its next line."""

    def __init__(self, record: Record) -> None:
        self._began = time.monotonic()
        self._examples = record.num_examples
        self._steps = record.epoch_step
        self._next_line, self._pause = self._began + _FIRST_LINE, _FIRST_LINE

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
        """Estimated seconds to the end of the pass at the mean rate so far."""
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
    """The tqdm class for `out`; None if the output is not interactive, or without tqdm."""
    in_notebook = out is sys.stderr and _in_notebook()
    if not in_notebook and not is_terminal(out):
        return None
    # Without ipywidgets, `tqdm.notebook` fails at its first bar.
    rich = in_notebook and importlib.util.find_spec("ipywidgets") is not None
    try:
        return importlib.import_module("tqdm.notebook" if rich else "tqdm").tqdm
    except ImportError:
        return None


def _width(out: TextIO | None) -> dict[str, Any]:
    """The width arguments of tqdm: dynamic, or 80 if the terminal reports a width of 0."""
    return {"ncols": 80} if _columns(out) == 0 else {"dynamic_ncols": True}


def _columns(out: TextIO | None) -> int | None:
    """The width of a terminal in characters, 0 if it does not say; None without a terminal."""
    if out is sys.stderr and _in_notebook():
        return None
    try:
        return os.get_terminal_size(cast("TextIO", out).fileno()).columns
    except (OSError, ValueError, AttributeError):  # a pipe, a closed file, None
        return None


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
