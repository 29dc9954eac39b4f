"""Prune: ends trials of Optuna that are worse than others."""

import importlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from solstice._callback import Callback, Phase
from solstice._monitor import Monitor
from solstice._record import Record
from solstice._schema import read


class Trial(Protocol):
    """The methods of an `optuna.Trial` that `Prune` calls."""

    def report(self, value: float, step: int) -> None:
        """Stores a value of the trial."""

    def should_prune(self) -> bool:
        """Whether the trial is worse than others at the same step."""
        ...


@dataclass(frozen=True)
class _State:
    reports: int


class Prune(Callback):
    """`Prune(trial, monitor="val/loss")`: end a trial of Optuna that is worse than others.

    ```python
    def objective(trial):
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        trainer = solstice.Trainer([solstice.callbacks.Prune(trial, "val/accuracy")])
        trainer.fit(make(rate), train_ds, val_ds, num_epochs=5)
        return trainer.history.best("val/accuracy")["accuracy"]

    optuna.create_study(direction="maximize").optimize(objective, n_trials=32)
    ```

    The metric is reported after each epoch, or after each validation for a "val/" metric. If the
    pruner of the study says so, `fit` raises `optuna.TrialPruned`, and the study takes the next
    trial.

    Args:
        trial: the argument of the objective.
        monitor: the metric with its mode: "val/loss", "train/accuracy".
        mode: whether a smaller ("min") or a larger ("max") value is better. By default the name
            decides. It must be the direction of the study.

    Raises:
        ValueError: at the start of a run, the study has the other direction or several ones;
            `monitor` has another form; or "val/" is monitored without a `val_ds`.
        KeyError: the metric does not exist; the message lists the existing ones.
        optuna.TrialPruned: in `fit`, the trial is worse than others.
    """

    phase = Phase.MONITOR
    modes = ("train", "val")

    def __init__(
        self,
        trial: Trial,
        monitor: str = "val/loss",
        *,
        mode: Literal["min", "max"] | None = None,
    ) -> None:
        self._monitor, self._trial = Monitor(monitor, mode), trial
        self.monitor, self.mode = monitor, self._monitor.mode
        self._reports = 0

    def on_fit_start(self, record: Record) -> None:
        """Raises an error if the run cannot have the metric, or the study goes the other way."""
        if record.mode != "train":
            return
        self._reports = 0
        self._monitor.check(record, type(self).__name__)
        study: Any = getattr(self._trial, "study", None)
        directions = [d.name.lower() for d in getattr(study, "directions", ())]
        expected = f"{self.mode}imize"
        if directions not in ([], [expected]):
            raise ValueError(
                f"Prune monitors {self.monitor!r}, of which a {self._side} value is better, and "
                f"the study has the directions {directions}: write "
                f'`optuna.create_study(direction="{expected}")`, or give `mode=` to Prune'
            )

    @property
    def _side(self) -> str:
        return "smaller" if self.mode == "min" else "larger"

    def on_epoch_end(self, record: Record) -> None:
        """Reports the metric, and raises `optuna.TrialPruned` if the trial is to end."""
        value = self._monitor.value(record)
        if value is None:
            return
        self._trial.report(value, self._reports)
        self._reports += 1
        if self._trial.should_prune():
            pruned: Any = importlib.import_module("optuna").TrialPruned
            raise pruned(f"{self.monitor} is {value:.4g} after {self._reports} reports")

    def state_dict(self) -> dict[str, Any]:
        """The number of reports, for a resumed run."""
        return {"reports": self._reports}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of `state_dict` in a resumed run."""
        self._reports = read(_State, state, "Prune.state_dict()").reports
