"""Log to MLflow."""

import re
import time
from collections.abc import Collection, Mapping
from typing import Any

from solstice._arguments import mapping, text, text_or_none
from solstice.loggers._logger import Logger, Start, is_missing, is_number, numbers_of

_REFUSED = re.compile(r"[^/\w. -]")
_LONGEST = 200
"""Stores of MLflow take 250 characters, of which the mode has some."""


class MLflow(Logger):
    """`MLflow("digits", tracking_uri="sqlite:///mlflow.db")`: a run of an experiment of MLflow's.

    Metrics are "train/loss" and "val/loss"; those of every so many steps "train_steps/loss". Arrays
    are left out, and named once. In names, characters that MLflow refuses become `_`: "recall@5" is
    "recall_5", which a warning says once. Needs `mlflow`.

    Args:
        experiment: the name of the experiment, which is made if there is none.
        tracking_uri: where MLflow keeps its runs; left out, what MLflow is set to.
        name: the name of the run.
        params: hyper-parameters by name.
        every: log the training metrics of every so many steps too.
        only: names of the metrics to log, without the mode; all by default.

    Attributes:
        run_id: the id of the run; None before it began.

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
        self._tools = _tools()
        self._client: Any = self._tools.MlflowClient(tracking_uri)
        self._there: dict[str, set[tuple[int, str]]] = {}

    def __repr__(self) -> str:
        return f"MLflow({self.experiment!r}, run_id={self.run_id!r})"

    def open(self, start: Start) -> None:
        """Begins a run, or goes on with one."""
        self.run_id = start.about.get("run_id")
        self._there = {}
        if self.run_id is not None:
            self._client.update_run(self.run_id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self.experiment)
        where = (
            self._client.create_experiment(self.experiment)
            if found is None
            else found.experiment_id
        )
        run = self._client.create_run(where, run_name=self._name)
        self.run_id = run.info.run_id
        params = self._names.of(self._params)
        for name, value in self._params.items():
            self._client.log_param(self.run_id, params[name], value)

    def write(self, row: dict[str, Any]) -> None:
        """Writes the numbers of a row, but those that are there already."""
        now = int(time.time() * 1000)
        metrics = [
            self._tools.entities.Metric(name, float(value), now, row["step"])
            for name, value in numbers_of(row).items()
        ]
        new = [metric for metric in metrics if not self._is_there(metric)]
        if new:
            self._client.log_batch(self.run_id, metrics=new)

    def name_of(self, metric: str) -> str:
        """Letters, digits, and `_-. /`, in a path that goes neither up nor in circles."""
        parts = [part for part in _REFUSED.sub("_", metric).split("/") if part]
        return (
            "/".join(part if part.strip(".") else "_" for part in parts)[:_LONGEST].rstrip("/")
            or "_"
        )

    def takes(self, value: Any) -> bool:
        """Numbers alone."""
        return is_number(value)

    def close(self, error: BaseException | None) -> None:
        """Tells MLflow how the run ended."""
        status = "FINISHED" if error is None else "FAILED"
        if isinstance(error, KeyboardInterrupt | SystemExit):
            status = "KILLED"
        self._client.set_terminated(self.run_id, status=status)

    def about(self) -> dict[str, Any]:
        """The run to go on with."""
        return {} if self.run_id is None else {"run_id": self.run_id}

    def state_key(self) -> dict[str, Any]:
        """The experiment of MLflow."""
        return {"experiment": self.experiment}

    def _is_there(self, metric: Any) -> bool:
        """Whether an earlier process has written it: MLflow cannot take back what it was given."""
        if self._start.kind != "resumed":
            return False
        if metric.key not in self._there:
            history = self._client.get_metric_history(self.run_id, metric.key)
            self._there[metric.key] = {(point.step, repr(point.value)) for point in history}
        return (metric.step, repr(metric.value)) in self._there[metric.key]


def _tools() -> Any:
    try:
        import mlflow  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise is_missing("mlflow", "MLflow") from error
    tools: Any = mlflow
    return tools
