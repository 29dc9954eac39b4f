"""Plots of metrics."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from solstice._arguments import names, share
from solstice._better import Direction, better
from solstice._bounds import is_bound
from solstice._history_rows import column_of
from solstice._per_member import is_vector
from solstice._picture import Figure, Picture
from solstice.history._history import History

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""The palette of Okabe and Ito, which colour-blind people can distinguish."""

_COLUMNS = 3
_PANELS = 9
"""The most panels by default."""

_MANY = 8
"""The most points at which each has a marker."""

_FLAT = 10
"""How many times larger the range of all members must be than that of the better half, to cut."""

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
        _focus(axes, [_fan(history, metric) for history in runs.values()], better(metric))
    if left_out:
        text = f"{len(left_out)} metrics more: only=[{left_out[0]!r}, ...]"
        figure.supxlabel(text, fontsize="small", color="gray")
    return figure


def _metrics(runs: Mapping[str, History], only: Collection[str] | None) -> list[str]:
    """The names of the metrics to draw, without modes, of all runs."""
    spans: tuple[Literal["epoch", "steps"], ...] = ("epoch", "steps")
    names = [n for run in runs.values() for span in spans for n in run.names(span)]
    there = list(dict.fromkeys(name.partition("/")[2] for name in names))
    known = {*there}
    shown = [name for name in there if not is_bound(name, known)]
    chosen = shown if only is None else [name for name in only if name in there]
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
    best = _best(history, metric)
    member = best.get("member") if best else None
    steps, values = _points(history, f"train/{metric}")
    if steps:
        smooth = smooth if len(steps) >= _NOISY else 0.0
        mark = "." if len(steps) <= _MANY else ""
        lines = _Lines(axes, steps, member, {"color": colour, "marker": mark})
        lines.draw(values, f"{prefix}train", smooth)
    steps, values = _points(history, f"val/{metric}")
    if steps:
        mark = "o" if len(steps) <= _MANY else ""
        style = {"color": other, "marker": mark, "markersize": 4, "linestyle": "--"}
        _Lines(axes, steps, member, style).draw(values, f"{prefix}val")
        _draw_interval(axes, history, f"val/{metric}", member, other)
    values = _points(history, f"test/{metric}")[1]
    if values:  # a test after training belongs to no step, so it is a horizontal line
        value = values[-1] if member is None else np.asarray(values[-1])[member]
        axes.axhline(value, color=other, linestyle=":", label=f"{prefix}test")
    if best is not None:
        _mark(axes, best, metric, other)


def _draw_interval(axes: Any, history: History, name: str, member: int | None, colour: str) -> None:
    """Draws the interval of a metric, or of that of a member, as a band."""
    (steps, low), (_, high) = (_points(history, f"{name}_{end}") for end in ("low", "high"))
    if steps and (member is not None or not is_vector(low[0])):
        ends = [x if member is None else np.asarray(x)[:, member] for x in (low, high)]
        axes.fill_between(steps, *ends, color=colour, alpha=0.18, linewidth=0)


def _points(history: History, name: str) -> tuple[list[int], list[Any]]:
    """The steps and values of the "steps" rows if there are any, else of the epochs."""
    for span in ("steps", "epoch"):
        if name in history.names(span):
            return history.series(name, span)
    return [], []


@dataclass(frozen=True)
class _Lines:
    """The lines of a metric in one mode.

    Attributes:
        axes: the panel.
        steps: the training steps of the points.
        member: the member of a population to emphasise; None for the one line of other runs.
        style: arguments of `plot`.
    """

    axes: Any
    steps: list[int]
    member: int | None
    style: Mapping[str, Any]

    def draw(self, values: list[Any], label: str, smooth: float = 0.0) -> None:
        """Draws the line, or the lines of all members with that of the best over them."""
        if not is_vector(values[0]):
            self._line([float(value) for value in values], label, smooth)
            return
        fan = np.array(values)
        lines = [_smoothed(line, smooth) if smooth else line for line in fan.T.tolist()]
        smoothed = np.where(np.isnan(fan), np.nan, np.transpose(lines))  # ends at a removal
        thin = {**self.style, "alpha": _faint(fan.shape[1]), "linewidth": 0.8}
        thin |= {"marker": ""} if len(self.steps) > 1 else {}
        first, *_ = self.axes.plot(self.steps, smoothed, **thin)
        if self.member is None:
            first.set_label(f"{label}, {fan.shape[1]} members")
        else:
            line = smoothed[:, self.member]
            named = f"{label}, member {self.member} of {fan.shape[1]}"
            self.axes.plot(self.steps, line, label=named, **self.style, zorder=4, linewidth=2)

    def _line(self, values: list[float], label: str, smooth: float) -> None:
        if smooth > 0:
            raw = {"color": self.style["color"], "alpha": 0.25, "linewidth": 1}
            self.axes.plot(self.steps, values, **raw)
            values, label = _smoothed(values, smooth), f"{label}, smoothed"
        self.axes.plot(self.steps, values, label=label, **self.style)


def _fan(history: History, metric: str) -> list[Any]:
    """The values of the members of a population, in all modes; [] of other runs."""
    found = [_points(history, f"{mode}/{metric}")[1] for mode in ("train", "val")]
    return [values for of_mode in found for values in of_mode if is_vector(values)]


def _focus(axes: Any, fans: list[list[Any]], direction: Direction) -> None:
    """Limits a panel to the better half of the members, if others would flatten their lines."""
    low, high = axes.get_ylim()
    ranges = [_range_of_half(np.array(fan), direction) for fan in fans if fan]
    if len(ranges) < len(fans) or not ranges:
        return
    bottom, top = min(low for low, _ in ranges), max(high for _, high in ranges)
    if high - low > _FLAT * (top - bottom) > 0:
        margin = 0.15 * (top - bottom)
        axes.set_ylim(bottom - margin, top + margin)


def _range_of_half(fan: np.ndarray[Any, Any], direction: Direction) -> tuple[float, float]:
    """The least and the largest finite value of the better half of the members."""
    worst = np.inf if direction == "min" else -np.inf
    finite = np.where(np.isfinite(fan), fan, worst)
    order = np.argsort(finite.min(0)) if direction == "min" else np.argsort(-finite.max(0))
    half = fan[:, order[: -(-fan.shape[1] // 2)]]
    known = half[np.isfinite(half)]
    return (known.min(), known.max()) if known.size else (np.inf, -np.inf)


def _faint(count: int) -> float:
    """The opacity of a line among others, so that a fan of any size is a shade."""
    return max(0.06, min(0.5, 6 / count))


def _best(history: History, metric: str) -> dict[str, Any] | None:
    """The row to mark; None if the metric has no best value, or a single point."""
    ranked = any(word in metric for word in ("loss", "accuracy"))  # a norm has no best value
    there = [f"val/{metric}", *([f"train/{metric}"] if ranked else [])]
    names = [name for name in there if name in history.names()]
    if not names or len(history.series(names[0])[0]) < 2:
        return None
    try:
        return history.best(names[0])
    except KeyError:  # all values are NaN
        return None


def _mark(axes: Any, best: Mapping[str, Any], metric: str, colour: str) -> None:
    value = best[column_of(metric)]
    point = best["step"], value
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
