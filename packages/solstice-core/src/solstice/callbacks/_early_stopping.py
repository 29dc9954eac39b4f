"""EarlyStopping: ends a run when a metric no longer improves."""

from dataclasses import dataclass
from typing import Any, Literal

from solstice._arguments import not_negative, whole
from solstice._callback import Callback, Phase
from solstice._keywords import keywords_explained
from solstice._monitor import Monitor
from solstice._per_member import best_of, is_vector
from solstice._record import Record, Stop
from solstice._schema import read


@dataclass(frozen=True)
class _State:
    best: float | None
    best_epoch: int | None
    waited: int


class EarlyStopping(Callback):
    """`EarlyStopping(monitor="val/loss", patience=3)`: stop when a metric no longer improves.

    The metric is read at the end of each epoch, or of each validation for a "val/" metric. It
    improves if it is better than the best value so far by more than `min_delta`. The run stops
    after `patience` values in a row without improvement. NaN is never an improvement. The value of
    a population is that of its best member.

    Args:
        monitor: the metric with its mode: "val/loss", "train/accuracy".
        mode: whether a smaller ("min") or a larger ("max") value is better. By default the name
            decides: smaller for a loss, an error, a perplexity and the like, else larger.
        patience: number of epochs or validations in a row without improvement, 1 or more.
        min_delta: the smallest change that is an improvement, in the metric's unit, 0 or more; or
            "1se", one standard error of the newest value, which needs
            `Trainer(val_confidence=0.95)` and a "val/" metric.

    Attributes:
        best: the best value so far; None before the first value.
        best_epoch: the index of its epoch, from 0; None before the first value.

    Raises:
        ValueError: an argument is out of range, or "val/" is monitored without a `val_ds`.
        KeyError: the metric does not exist; the message lists the existing ones. It is raised
            before the first step, or later if the names depend on computed values. Or it has no
            standard error.
    """

    phase = Phase.MONITOR
    modes = ("train", "val")

    @keywords_explained
    def __init__(
        self,
        monitor: str = "val/loss",
        *,
        mode: Literal["min", "max"] | None = None,
        patience: int = 3,
        min_delta: float | Literal["1se"] = 0.0,
    ) -> None:
        self._monitor = Monitor(monitor, mode)
        self.monitor, self.mode = monitor, self._monitor.mode
        self.patience = whole("patience", patience, 1, "epochs")
        self.min_delta: float | Literal["1se"] = _checked(min_delta, monitor)
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._waited = 0

    def on_fit_start(self, record: Record) -> None:
        """Resets the state, and raises an error if the run cannot have the metric."""
        if record.mode == "train":  # else an evaluation by itself
            self.best, self.best_epoch, self._waited = None, None, 0
            self._monitor.check(record, type(self).__name__)

    def on_epoch_end(self, record: Record) -> None:
        """Compares the value with the best so far, and stops the run when patience ends."""
        value = self._monitor.value(record)
        if value is None:
            return
        least = self._standard_error(record) if self.min_delta == "1se" else float(self.min_delta)
        if self._monitor.improves(value, self.best, least):
            self.best, self.best_epoch, self._waited = value, record.epoch, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            best = "a number" if self.best is None else f"{self.best:.6g}"  # NaN from the start
            unit = "validation" if self.monitor.startswith("val/") else "epoch"
            times = f"{self._waited} {unit}{'s' if self._waited > 1 else ''}"
            raise Stop(f"{self.monitor} has not improved on {best} in {times}")

    def _standard_error(self, record: Record) -> float:
        name = self.monitor.partition("/")[2]
        if f"{name}_se" not in record.metrics:
            raise KeyError(
                f'EarlyStopping(min_delta="1se") needs the standard error of {self.monitor!r}: '
                f"write `Trainer(callbacks, val_confidence=0.95)`, and monitor a mean or a score"
            )
        error, value = record.metrics[f"{name}_se"], record.metrics[name]
        if is_vector(value):
            return float(error[best_of(value, self._monitor.mode)[0] or 0])
        return float(error)

    def state_dict(self) -> dict[str, Any]:
        """The best value, its epoch, and the number of values since, for a resumed run."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of `state_dict` in a resumed run."""
        at = read(_State, state, "EarlyStopping.state_dict()")
        self.best, self.best_epoch, self._waited = at.best, at.best_epoch, at.waited


def _checked(min_delta: object, monitor: str) -> float | Literal["1se"]:
    if not (isinstance(min_delta, str) and min_delta == "1se"):
        return not_negative("min_delta", min_delta)
    if monitor.startswith("train/"):
        raise ValueError(
            f'min_delta="1se" needs a "val/" metric, because {monitor!r} has no standard error'
        )
    return "1se"
