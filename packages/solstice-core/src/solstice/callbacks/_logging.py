"""Logging: metrics to the standard logger or to a function."""

import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from solstice._arguments import function_or_none, names, whole_or_none
from solstice._callback import Callback
from solstice._console import say
from solstice._hyperparameters import flat
from solstice._left_out import LeftOut
from solstice._per_member import as_numbers, is_vector
from solstice._record import Record


class Logging(Callback):
    """`Logging()`: log the metrics of each epoch; `Logging(wandb.log, every=50)`: to a function.

    Names start with the mode: "train/loss", "val/accuracy". At the end of an epoch, metrics cover
    the epoch. With `every=n`, training metrics are also logged every n training steps, and cover
    these n steps; remaining steps at the end of a run appear only in the line of the epoch. Of a
    population, "val/accuracy/best" and "val/accuracy/median" are logged. Arrays are left out; a
    warning names them once.

    Args:
        log: called as `log(metrics, step)` with a dict from name to float and the number of
            training steps so far; `wandb.log` and `mlflow.log_metrics` fit. By default, a line at
            level INFO goes to the standard logger "solstice", which prints it to standard error
            unless you configure it.
        every: also log the training metrics after this number of steps.
        only: names of the metrics to log, without the mode, as in ("loss", "accuracy"); all by
            default.

    Raises:
        ValueError: `every` is not a whole number of 1 or more.
        TypeError: `only` does not contain names, or `log` is not a function.
    """

    modes = ("train", "val", "test")  # predictions have no metrics
    processes = "first"

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
        """Shows the hyper-parameters, unless the metrics go to a function."""
        self._left_out = LeftOut()
        if record.mode == "train" and record.hyperparameters and self._log is _to_logger:
            given = flat(record.hyperparameters).items()
            say("hyperparameters  " + "  ".join(f"{name} {value}" for name, value in given))

    def on_step_end(self, record: Record) -> None:
        """Logs the training metrics of the last `every` steps."""
        if record.mode == "train":
            self._send(record)

    def on_epoch_end(self, record: Record) -> None:
        """Logs the metrics of the epoch or the evaluation."""
        self._send(record)

    def _send(self, record: Record) -> None:
        only = self._only
        chosen = {n: v for n, v in record.metrics.items() if only is None or n in only}
        shown = {n: v for n, v in chosen.items() if isinstance(v, numbers.Real) or is_vector(v)}
        self._left_out.name(
            {n: v for n, v in chosen.items() if n not in shown},
            "Logging leaves out metrics that are not numbers:",
            "Choose metrics with `only=`",
        )
        if shown:
            named = {f"{record.mode}/{name}": value for name, value in as_numbers(shown).items()}
            self._log(cast("dict[str, float]", named), record.step)


def _to_logger(metrics: Mapping[str, float], step: int) -> None:
    values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    say(f"step {step}  {values}")
