"""Log metrics to the standard logger or to any function."""

import logging
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from solstice._arguments import function_or_none, names, whole_or_none
from solstice._callback import Callback
from solstice._left_out import LeftOut
from solstice._record import Record

logger = logging.getLogger("solstice")


class Logging(Callback):
    """`Logging()`: log each epoch's metrics; `Logging(wandb.log, every=50)`: to a function.

    Metrics are named by mode, as in "train/loss" and "val/accuracy". At the end of an epoch
    they cover the epoch. With `every=n` the training metrics are also logged at each n-th
    training step, covering the n steps since the last time; steps left over at the end of the
    run are part of the epoch's own line. Arrays are left out, and named once.

    Args:
        log: called as `log(metrics, step)` with a dict from name to float and the number of
            training steps so far, as `wandb.log` and `mlflow.log_metrics` take them. Left out,
            a line at level INFO to the standard logger "solstice".
        every: log the training metrics every so many steps too.
        only: names of the metrics to log, without the mode, as in ("loss", "accuracy").

    Raises:
        ValueError: `every` is not a whole number from 1 on.
        TypeError: `only` holds no names.
    """

    def __init__(
        self,
        log: Callable[[dict[str, float], int], Any] | None = None,
        *,
        every: int | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        self._log = function_or_none("log", log, "log=wandb.log") or _to_logger
        self._only = names("only", only)
        self.every = whole_or_none("every", every, 1, "steps")
        self.needs = ("metrics",)
        self._left_out = LeftOut()

    def on_fit_start(self, record: Record) -> None:
        """Begins to name what is left out."""
        del record
        self._left_out = LeftOut()

    def on_step_end(self, record: Record) -> None:
        """Logs the window that ends with this step."""
        if record.mode == "train":
            self._send(record)

    def on_epoch_end(self, record: Record) -> None:
        """Logs the epoch, or the evaluation."""
        self._send(record)

    def _send(self, record: Record) -> None:
        only = self._only
        chosen = {n: v for n, v in record.metrics.items() if only is None or n in only}
        metrics = {n: v for n, v in chosen.items() if isinstance(v, numbers.Real)}
        self._left_out.name(
            {n: v for n, v in chosen.items() if n not in metrics},
            "Logging leaves out what is not a number:",
            "Choose by `only=`",
        )
        if metrics:
            named = {f"{record.mode}/{name}": value for name, value in metrics.items()}
            self._log(cast("dict[str, float]", named), record.step)


def _to_logger(metrics: Mapping[str, float], step: int) -> None:
    values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    logger.info("step %d  %s", step, values)
