"""Monitor: one metric of a run, its values, and whether smaller or larger ones are better."""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from solstice._arguments import shown
from solstice._better import Direction, better
from solstice._per_member import best_of, is_vector
from solstice._record import Record


@dataclass(frozen=True, init=False)
class Monitor:
    """`Monitor("val/loss")`: a metric for callbacks that compare its values.

    ```python
    class Best(solstice.Callback):
        modes = ("train", "val")
        phase = solstice.Phase.MONITOR

        def __init__(self, monitor):
            self._monitor = Monitor(monitor)
            self.monitor, self.mode = monitor, self._monitor.mode

        def on_fit_start(self, record):
            self._monitor.check(record)
            self.best = None

        def on_epoch_end(self, record):
            value = self._monitor.value(record)
            if value is not None and self._monitor.improves(value, self.best):
                self.best = value
    ```

    Args:
        monitor: the metric with its mode: "val/loss", "train/accuracy".
        mode: whether a smaller ("min") or a larger ("max") value is better. By default the name
            decides: smaller for a loss, an error, a perplexity and the like, else larger.

    Attributes:
        monitor: the metric with its mode.
        mode: "min" or "max".

    Raises:
        ValueError: `monitor` or `mode` has another form.
    """

    monitor: str
    mode: Direction

    def __init__(self, monitor: str, mode: Direction | None = None) -> None:
        _check_name(monitor)
        object.__setattr__(self, "monitor", monitor)
        object.__setattr__(self, "mode", better(monitor, mode))

    def check(self, record: Record, who: str = "a callback") -> None:
        """`monitor.check(record)` in `on_fit_start`: raise if `fit` cannot measure the metric.

        Args:
            record: the argument of the hook.
            who: who monitors, for the message.

        Raises:
            ValueError: the name starts with "val/", and there is no validation set.
        """
        if record.mode == "train" and not record.has_validation and self.monitor.startswith("val/"):
            raise ValueError(no_validation(who, self.monitor))

    def value(self, record: Record) -> float | None:
        """`value = monitor.value(record)` in `on_epoch_end`: the metric of this epoch.

        Returns:
            The value; of a population that of its best member. None at the end of an epoch of
            another mode, of an empty epoch, and of an evaluation outside of `fit`.

        Raises:
            KeyError: there is no such metric; the message lists the metrics.
            ValueError: the metric is an array.
        """
        mode, _, metric = self.monitor.partition("/")
        is_in_fit = record.mode == "train" or record.has_validation
        if record.mode != mode or not is_in_fit or record.epoch_step == 0:
            return None
        if metric not in record.metrics:
            raise KeyError(no_metric("a callback", self.monitor, record.metrics))
        value = record.metrics[metric]
        if is_vector(value):
            return best_of(value, self.mode)[1]
        if np.ndim(value):
            raise ValueError(no_scalar("a callback", self.monitor, np.ndim(value)))
        return float(value)

    def improves(self, value: float, best: float | None, min_delta: float = 0.0) -> bool:
        """`monitor.improves(value, best)`: whether a value is better; NaN never is.

        Args:
            value: the newest value.
            best: the best value so far; None before the first.
            min_delta: the smallest change that is an improvement.
        """
        if math.isnan(value) or best is None:
            return not math.isnan(value)
        return (best - value if self.mode == "min" else value - best) > min_delta

    def rank(self, value: float) -> float:
        """`sorted(values, key=monitor.rank)`: the best value first."""
        return value if self.mode == "min" else -value


def _check_name(monitor: object) -> None:
    """Raises a ValueError if a name is not one as in "val/loss"."""
    split, _, metric = monitor.partition("/") if isinstance(monitor, str) else ("", "", "")
    if split not in ("train", "val") or not metric:
        raise ValueError(
            f'monitor must be named as in "train/loss" or "val/loss"; it is {shown(monitor)}'
            f"{_meant(monitor)}"
        )


def _meant(monitor: object) -> str:
    """Advice for a name without its mode, or with the mode as in other libraries."""
    if not isinstance(monitor, str) or not monitor.isidentifier():
        return ""
    found = re.fullmatch(r"(train|val)(?:ing|id|idation)?_(.+)", monitor)
    return f". Write {'/'.join(found.groups()) if found else f'val/{monitor}'!r}"


def no_metric(who: str, monitor: str, metrics: Iterable[str]) -> str:
    """The message for a monitored metric that does not exist, with the metrics of its mode."""
    there = [f"{monitor.partition('/')[0]}/{name}" for name in metrics]
    close = difflib.get_close_matches(monitor, there, 1)
    instead = f"; did you mean {close[0]!r}?" if close else ""
    return (
        f"{who} monitors {monitor!r}: there is no metric {monitor!r}; there are: "
        f"{', '.join(there) or 'none'}{instead}"
    )


def no_validation(who: str, monitor: str) -> str:
    """The message for a monitored metric of a validation that `fit` does not have."""
    return (
        f"{who} monitors {monitor!r} and there is no validation: give `fit` a val_ds, "
        f'or monitor a "train/" metric'
    )


def no_scalar(who: str, monitor: str, axes: int) -> str:
    """The message for a monitored metric that is an array."""
    return (
        f"{who} monitors {monitor!r}, which is an array of {axes} axes: monitor a scalar, such as "
        f"its mean, and add it to the result of `compute` under another name"
    )
