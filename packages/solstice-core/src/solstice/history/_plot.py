"""Plots of metrics."""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

from solstice._arguments import names, share
from solstice._better import better
from solstice._history_rows import column_of
from solstice._picture import Figure, Picture
from solstice.history._history import History

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""The palette of Okabe and Ito, which colour-blind people can distinguish."""

_COLUMNS = 3
_PANELS = 9
"""The most panels by default."""

_MANY = 8
"""The most points at which each has a marker."""

_NOISY = 30
"""The fewest points for smoothing; with fewer, the raw line shows the trend."""


def draw(runs: Mapping[str, History], *, only: Collection[str] | None, smooth: float) -> Figure:
    """Draws a panel for each metric, with a colour for each run."""
    smooth = share("smooth", smooth)
    metrics = _metrics(runs, names("only", only))
    left_out = metrics[_PANELS:] if only is None else []
    metrics = metrics[: len(metrics) - len(left_out)]
    columns = min(len(metrics), _COLUMNS)
    rows = -(-len(metrics) // columns)
    # Without pyplot, which would hold each figure until it is closed.
    figure = Picture(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    for index, metric in enumerate(metrics):
        axes: Any = figure.add_subplot(rows, columns, index + 1)
        axes.set_title(metric)
        for order, (name, history) in enumerate(runs.items()):
            colours = _COLOURS[order % len(_COLOURS)], _COLOURS[(order + 1) % len(_COLOURS)]
            _draw_metric(axes, name, history, metric, colours, smooth, alone=len(runs) == 1)
        _finish(axes)
    if left_out:
        text = f"{len(left_out)} metrics more: only=[{left_out[0]!r}, ...]"
        figure.supxlabel(text, fontsize="small", color="gray")
    return figure


def _metrics(runs: Mapping[str, History], only: Collection[str] | None) -> list[str]:
    """The names of the metrics to draw, without modes, of all runs."""
    spans: tuple[Literal["epoch", "steps"], ...] = ("epoch", "steps")
    names = [n for run in runs.values() for span in spans for n in run.names(span)]
    there = list(dict.fromkeys(name.partition("/")[2] for name in names))
    chosen = there if only is None else [name for name in only if name in there]
    if not chosen:
        asked = "" if only is None else f" of {list(only)}"
        raise ValueError(f"there is nothing to draw{asked}; there are: {there or 'no metrics'}")
    return chosen


def _draw_metric(
    axes: Any,
    run: str,
    history: History,
    metric: str,
    colours: tuple[str, str],
    smooth: float,
    *,
    alone: bool,
) -> None:
    """Draws training (raw and smoothed), then evaluations, and marks the best value."""
    prefix = f"{run} " if run else ""
    colour, other = colours if alone else (colours[0], colours[0])
    steps, values = _points(history, f"train/{metric}")
    if steps:
        is_smoothed = len(steps) >= _NOISY and smooth > 0
        if is_smoothed:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            values = _smoothed(values, smooth)
        label = f"{prefix}train" + (", smoothed" if is_smoothed else "")
        mark = "." if len(steps) <= _MANY else ""
        axes.plot(steps, values, color=colour, label=label, marker=mark)
    steps, values = _points(history, f"val/{metric}")
    if steps:
        mark = "o" if len(steps) <= _MANY else ""
        axes.plot(steps, values, "--", color=other, label=f"{prefix}val", marker=mark, markersize=4)
    values = _points(history, f"test/{metric}")[1]
    if values:  # a test after training belongs to no step, so it is a horizontal line
        axes.axhline(values[-1], color=other, linestyle=":", label=f"{prefix}test")
    _mark_best(axes, history, metric, other)


def _points(history: History, name: str) -> tuple[list[int], list[float]]:
    """The steps and values of the "steps" rows if there are any, else of the epochs."""
    for span in ("steps", "epoch"):
        if name in history.names(span):
            return history.series(name, span)
    return [], []


def _mark_best(axes: Any, history: History, metric: str, colour: str) -> None:
    ranked = any(word in metric for word in ("loss", "accuracy"))  # a norm has no best value
    there = [f"val/{metric}", *([f"train/{metric}"] if ranked else [])]
    names = [name for name in there if name in history.names()]
    if not names or len(history.series(names[0])[0]) < 2:
        return
    try:
        row = history.best(names[0])
    except KeyError:  # all values are NaN
        return
    value = row[column_of(metric)]
    point = row["step"], value
    axes.plot(*point, marker="*", markersize=13, color=colour, markeredgecolor="black", zorder=5)
    text, below = f"{value:.4g}", better(metric) == "min"
    axes.annotate(
        text, point, xytext=(0, 9 if below else -16), textcoords="offset points", ha="center"
    )


def _smoothed(values: list[float], share: float) -> list[float]:
    """An exponential moving average with Adam's bias correction; NaN is skipped."""
    mean, weight, found = 0.0, 0.0, list[float]()
    for value in values:
        if not math.isnan(value):
            mean = share * mean + (1 - share) * value
            weight = share * weight + (1 - share)
        found.append(mean / weight if weight else math.nan)
    return found


def _finish(axes: Any) -> None:
    axes.set_xlabel("step")
    axes.margins(y=0.15)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
