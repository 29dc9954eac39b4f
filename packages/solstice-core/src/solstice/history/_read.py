"""Reader of histories from CSV and JSON lines files."""

import csv
import json
from os import PathLike
from typing import Any

from solstice._history_rows import MOMENT, from_file, read_rows
from solstice._paths import check_regular, local_path
from solstice.history._history import History
from solstice.history._rows import Rows


def read_history(path: str | PathLike[str]) -> History:
    """`solstice.read_history("runs/a.csv").plot()`: read the metrics of an earlier run.

    Args:
        path: a file of `History.to_csv`, `History.to_jsonl`, `solstice.loggers.CSV` or
            `solstice.loggers.JSONLines`.

    Raises:
        ValueError: the file is not such a table.
    """
    path = local_path(path, "path")
    check_regular(path, "the table")
    try:
        text = path.read_text(encoding="utf-8")
        is_json = text.startswith("{")
        rows = _from_json(text) if is_json else _from_csv(text)
        rows = read_rows(rows, "the table")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise ValueError(
            f"{path} is not a table of metrics as `history.to_csv(path)` writes it: {error!r}"
        ) from error
    history = History()
    history.rows = Rows(rows)
    return history


def _from_json(text: str) -> list[dict[str, Any]]:
    rows: list[Any] = [json.loads(line) for line in text.splitlines()]
    return [{name: from_file(value) for name, value in row.items()} for row in rows]


def _from_csv(text: str) -> list[dict[str, Any]]:
    table = csv.DictReader(text.splitlines())
    return [{name: _value(name, cell) for name, cell in row.items() if cell != ""} for row in table]


def _value(name: str, cell: str) -> Any:
    if name in ("step", "epoch"):
        return int(cell)
    if name in MOMENT:
        return cell
    if cell in ("True", "False"):
        return cell == "True"
    return from_file(json.loads(cell)) if cell.startswith(("[", "{")) else float(cell)
