"""Rows of metrics in histories, loggers and their files."""

import json
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from solstice import _tree
from solstice._per_member import PerMember, is_vector, per_member
from solstice._record import Record
from solstice._schema import SchemaError, read

MOMENT = ("step", "epoch", "mode", "span")
"""The first columns of every row; the metrics follow."""

_TAKEN = re.compile(rf"(metric/)*({'|'.join(MOMENT)}|member)")
"""Metrics with these names are stored in a column "metric/...", so none overwrites a `MOMENT`, or
the member in the best row of a population."""

_MEMBERS = "members"
"""The key that marks the values of the members of a population in files: {"members": [0.1, 0.2]}"""


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
    if not hasattr(value, "dtype"):
        return value
    listed = _tree.to_numpy(value).tolist()
    return {_MEMBERS: listed} if isinstance(value, PerMember) else listed


def from_file(value: Any) -> Any:
    """A value of `as_json` or `as_cells`, read by `json`."""
    if not isinstance(value, dict):
        return value
    found = cast("dict[str, Any]", value)
    if {*found} != {_MEMBERS}:
        raise ValueError(f"{found!r:.60} is not a metric")
    return per_member(found[_MEMBERS])


def as_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a CSV file: numbers without loss of precision, arrays as JSON."""
    return {
        name: json.dumps(_plain(value)) if np.ndim(value) else value for name, value in row.items()
    }


def is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real)  # True is a Real


def is_numeric(value: object) -> bool:
    """Whether a metric is a number, or a number for each member of a population."""
    return is_number(value) or is_vector(value)
