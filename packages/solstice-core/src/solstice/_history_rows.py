"""Rows of metrics in histories, loggers and their files."""

import json
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from solstice import _tree
from solstice._record import Record
from solstice._schema import SchemaError, read

MOMENT = ("step", "epoch", "mode", "span")
"""The first columns of every row; the metrics follow."""

_TAKEN = re.compile(rf"(metric/)*({'|'.join(MOMENT)})")
"""Metrics with these names are stored in a column "metric/...", so none overwrites a `MOMENT`."""


@dataclass(frozen=True)
class _Row:
    step: int
    epoch: int
    mode: Literal["train", "val", "test"]
    span: Literal["epoch", "steps"]


def read_rows(rows: Any, where: str) -> list[dict[str, Any]]:
    """Rows from a file or a state, after a check.

    Raises:
        SchemaError: a row has no valid step, epoch, mode or span, or a value is not a metric.
    """
    read(list[_Row], rows, where)
    for row in read(list[dict[str, Any]], rows, where):
        for name, value in row.items():
            try:
                np.ndim(value)
            except ValueError as error:
                raise SchemaError(f"{where} has no metric at {name!r:.60}: {error}") from error
    return list(rows)


def row_of(record: Record, span: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the step or epoch in `record`."""
    moment = {"step": record.step, "epoch": record.epoch, "mode": record.mode, "span": span}
    return {**moment, **{column_of(name): value for name, value in metrics.items()}}


def column_of(name: str) -> str:
    """The column of a metric: its name, or "metric/step" for a metric named "step"."""
    return f"metric/{name}" if _TAKEN.fullmatch(name) else name


def metrics_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a row by their original names."""
    return {
        name.removeprefix("metric/") if _TAKEN.fullmatch(name) else name: value
        for name, value in row.items()
        if name not in MOMENT
    }


def as_json(row: Mapping[str, Any]) -> str:
    """A row as JSON; NaN and infinity are written in Python's notation."""
    return json.dumps({name: _plain(value) for name, value in row.items()})


def _plain(value: object) -> Any:
    return _tree.to_numpy(value).tolist() if hasattr(value, "dtype") else value


def as_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a CSV file: numbers without loss of precision, arrays as JSON."""
    return {
        name: json.dumps(_plain(value)) if np.ndim(value) else value for name, value in row.items()
    }


def is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real)  # True is a Real
