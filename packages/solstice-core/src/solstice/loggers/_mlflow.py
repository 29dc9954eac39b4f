"""Logger for MLflow."""

import re
import time
from collections.abc import Collection, Mapping
from typing import Any

from solstice._arguments import mapping, text, text_or_none
from solstice._hyperparameters import flat
from solstice.loggers._logger import Logger, Start, imported, is_shown, numbers_of

_REFUSED = re.compile(r"[^/\w. -]")
_LONGEST = 200
"""The most characters of a metric: MLflow accepts 250, including the mode before the name."""


class MLflow(Logger):
    """`MLflow("digits", tracking_uri="sqlite:///mlflow.db")`: log to a run of an MLflow experiment.

    Metrics are named "train/loss" and "val/loss"; with `every`, those between epochs
    "train_steps/loss". Those of a population are "val/loss/best" and "val/loss/median". Other
    arrays are left out; a warning names them once. Characters that MLflow refuses become `_`:
    "recall@5" is "recall_5"; a warning lists such names once. Needs `mlflow`.

    Args:
        experiment: the name of the experiment; it is created if it does not exist.
        tracking_uri: MLflow's tracking server or store; by default MLflow's own setting.
        name: the name of the run.
        params: hyper-parameters by name, in addition to those of the Trainer. Of nested ones, the
            names are such as "optimizer.rate".
        every: also log the training metrics after this number of steps.
        only: names of the metrics to log, without the mode; all by default.

    Attributes:
        run_id: the id of the run; None before the first row.

    Raises:
        ImportError: mlflow is not installed.
    """

    def __init__(
        self,
        experiment: str,
        *,
        tracking_uri: str | None = None,
        name: str | None = None,
        params: Mapping[str, Any] | None = None,
        every: int | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(every=every, only=only)
        self.experiment = text("experiment", experiment, "digits")
        self.run_id: str | None = None
        self._name = text_or_none("name", name, "first")
        self._params = mapping("params", params, '{"rate": 0.1}')
        tracking_uri = text_or_none("tracking_uri", tracking_uri, "sqlite:///mlflow.db")
        self._tools = imported("mlflow", "MLflow")
        self._client: Any = self._tools.MlflowClient(tracking_uri)
        self._there: dict[str, set[tuple[int, str]]] = {}

    def __repr__(self) -> str:
        return f"MLflow({self.experiment!r}, run_id={self.run_id!r})"

    def open(self, start: Start) -> None:
        """Creates a run with its params, or reopens the run of a resumed one."""
        self.run_id = start.about.get("run_id")
        self._there = {}
        if self.run_id is not None:
            self._client.update_run(self.run_id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self.experiment)
        create = self._client.create_experiment
        where = create(self.experiment) if found is None else found.experiment_id
        self.run_id = self._client.create_run(where, run_name=self._name).info.run_id
        given = {**flat(start.hyperparameters), **self._params}
        names = self._names.of(given)
        for name, value in given.items():
            self._client.log_param(self.run_id, names[name], value)

    def write(self, row: dict[str, Any]) -> None:
        """Writes the numbers of a row that MLflow does not have yet."""
        now = int(time.time() * 1000)
        metrics = [
            self._tools.entities.Metric(name, float(value), now, row["step"])
            for name, value in numbers_of(row).items()
        ]
        new = [metric for metric in metrics if not self._is_there(metric)]
        if new:
            self._client.log_batch(self.run_id, metrics=new)

    def name_of(self, metric: str) -> str:
        """The name with letters, digits and `_-. /` only, and without path parts of dots."""
        parts = [part for part in _REFUSED.sub("_", metric).split("/") if part]
        name = "/".join(part if part.strip(".") else "_" for part in parts)
        return name[:_LONGEST].rstrip("/") or "_"  # MLflow refuses a slash at the end

    def takes(self, value: object) -> bool:
        """Whether the value is a number, or a number for each member; MLflow has no arrays."""
        return is_shown(value)

    def close(self, error: BaseException | None) -> None:
        """Sets the status of the run: finished, failed or killed."""
        status = "FINISHED" if error is None else "FAILED"
        if isinstance(error, KeyboardInterrupt | SystemExit):
            status = "KILLED"
        self._client.set_terminated(self.run_id, status=status)

    def about(self) -> dict[str, Any]:
        """The id of the run, which a resumed run continues."""
        return {} if self.run_id is None else {"run_id": self.run_id}

    def state_key(self) -> dict[str, Any]:
        """The MLflow experiment, which identifies this logger in a checkpoint."""
        return {"experiment": self.experiment}

    def _is_there(self, metric: Any) -> bool:
        """Whether an earlier process has written the metric: MLflow cannot delete values."""
        if self._start.kind != "resumed":
            return False
        if metric.key not in self._there:
            history = self._client.get_metric_history(self.run_id, metric.key)
            # As text, because NaN is not equal to itself.
            self._there[metric.key] = {(point.step, repr(point.value)) for point in history}
        return (metric.step, repr(metric.value)) in self._there[metric.key]
