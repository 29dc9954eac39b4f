"""Keep the metrics of a run."""

import csv
import html
import importlib
import itertools
import json
import numbers
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from solstice._arguments import choice, switch, text, whole_or_none
from solstice._better import better
from solstice._callback import Callback
from solstice._left_out import LeftOut
from solstice._paths import local_path
from solstice._record import Record
from solstice._schema import SchemaError, read
from solstice.checkpoint import AppendOnly

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOMENT = ("step", "epoch", "mode", "span")
"""The columns that every row has, before its metrics."""

_SPANS = ("epoch", "steps")

_TAKEN = re.compile(rf"(metric/)*({'|'.join(MOMENT)})")
"""Names of metrics whose column has another name, so that none is lost."""

_SHOWN = 10
"""Epochs in a `repr`."""

_WIDTH = 100
"""Characters in a line of a `repr`, where there is no terminal to say."""


class History(Callback):
    """`trainer.history`, which every Trainer keeps: the metrics of its newest run, as a table.

    ```python
    trainer.fit(exp, train_ds, val_ds, num_epochs=10)
    trainer.history.plot("curves.png")
    trainer.history.to_csv("metrics.csv")
    ```

    `Trainer(callbacks=[History(every=50)])` makes it keep the metrics of every 50 steps too.

    A row is a dict: "step" and "epoch", the moment; "mode", of "train", "val" and "test"; "span",
    which is "epoch" where the metrics cover an epoch or an evaluation, and "steps" where they cover
    the training steps since the row before of that span; and the metrics by their names. A metric
    with the name of one of those four is "metric/step" in a row and in files.

    Args:
        every: keep the training metrics of every so many steps too.
        scalars_only: leave out what is no number, such as a confusion matrix.
        max_size: leave out arrays of more numbers, with a warning that names them. That of a
            Trainer itself keeps up to 256; left out, all are kept.

    Attributes:
        rows: the rows, oldest first, a list to which rows are only added. A new run of training
            begins anew; one that is resumed has those up to where it goes on. A checkpoint writes a
            row once, so do not change one: what you note yourself belongs in a callback.

    Raises:
        ValueError: an argument is out of range.
    """

    needs = ("metrics",)

    def __init__(
        self, *, every: int | None = None, scalars_only: bool = False, max_size: int | None = None
    ) -> None:
        self.every = whole_or_none("every", every, 1, "steps")
        self.scalars_only = switch("scalars_only", scalars_only)
        self.max_size = whole_or_none("max_size", max_size, 0, "numbers")
        self._left_out = LeftOut()
        self.rows: list[dict[str, Any]] = AppendOnly()

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        """The epochs as a table, with as many metrics as a line holds."""
        lines = self._lines()
        room = shutil.get_terminal_size((_WIDTH, 24)).columns
        widths = itertools.accumulate(len(cell) + 2 for cell in lines[0])
        count = max(sum(width <= room for width in widths), min(4, len(lines[0])))
        more = lines[0][count:]
        table = ["  ".join(line[:count]).rstrip() for line in lines]
        if more:
            table.append(f"and {len(more)} metrics more, such as {more[0].strip()}")
        return "\n".join(table)

    def _repr_html_(self) -> str:
        head, *lines = self._cells()
        tags = [_html_row("th", head), *(_html_row("td", line) for line in lines)]
        return f"<table>{''.join(tags)}</table>"

    def series(
        self, name: str, span: Literal["epoch", "steps"] = "epoch"
    ) -> tuple[list[int], list[float]]:
        """`steps, losses = history.series("val/loss")`: one metric over the run.

        Args:
            name: the metric, named with its mode.
            span: "epoch", or "steps" for the rows of every so many steps.

        Returns:
            The training steps of the rows, and the values, NaN too.

        Raises:
            KeyError: there is no such metric; the message lists those there are.
        """
        choice("span", span, _SPANS)
        mode, _, metric = text("name", name, "val/loss").partition("/")
        there = [row for row in self.rows if (row["mode"], row["span"]) == (mode, span)]
        column = column_of(metric)
        found = [(row["step"], float(row[column])) for row in there if _is_number(row.get(column))]
        if not found:
            names = ", ".join(self.names(span)) or "none"
            raise KeyError(f"there is no metric {name!r} by {span}; there are: {names}")
        return [step for step, _ in found], [value for _, value in found]

    def names(self, span: Literal["epoch", "steps"] = "epoch") -> list[str]:
        """`history.names()`: the metrics that are numbers, with their modes: "train/loss"."""
        choice("span", span, _SPANS)
        found = {
            f"{row['mode']}/{name}": None
            for row in self.rows
            if row["span"] == span
            for name, value in metrics_in(row).items()
            if _is_number(value)
        }
        return list(found)

    def best(self, name: str, mode: Literal["min", "max"] | None = None) -> dict[str, Any]:
        """`history.best("val/accuracy")["epoch"]`: the row in which a metric is best.

        Args:
            name: the metric, named with its mode.
            mode: whether less ("min") or more ("max") of it is better. By default its name decides:
                less for a loss, an error, a perplexity and the like, and more for all others.

        Raises:
            KeyError: there is no such metric, or it is NaN throughout.
        """
        self.series(name)  # raises what is to be raised
        split, _, metric = name.partition("/")
        column = column_of(metric)
        rows = [
            row
            for row in self.rows
            if (row["mode"], row["span"]) == (split, "epoch")
            and _is_number(row.get(column))
            and not np.isnan(row[column])
        ]
        if not rows:
            raise KeyError(f"{name!r} is NaN in all {len(self.rows)} rows")
        mode = better(name, mode)
        sign = 1 if mode == "min" else -1
        return min(rows, key=lambda row: sign * row[column])

    def to_pandas(self) -> Any:
        """`history.to_pandas()`: a `pandas.DataFrame`, a line for each row.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            pandas: Any = importlib.import_module("pandas")
        except ImportError as error:
            raise ImportError(
                "history.to_pandas() needs pandas: `pip install pandas`, or use `history.rows`, "
                "`history.to_csv(path)`"
            ) from error
        return pandas.DataFrame(self.rows)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """`history.to_csv("metrics.csv")`: a column for each metric; arrays are written as JSON."""
        columns = dict.fromkeys([*MOMENT, *(name for row in self.rows for name in row)])
        with local_path(path, "path").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(map(as_cells, self.rows))

    def to_jsonl(self, path: str | PathLike[str]) -> None:
        """`history.to_jsonl("metrics.jsonl")`: a line of JSON for each row; arrays become lists."""
        with local_path(path, "path").open("w", encoding="utf-8") as file:
            file.writelines(f"{as_json(row)}\n" for row in self.rows)

    def plot(
        self,
        path: str | PathLike[str] | None = None,
        *,
        only: Collection[str] | None = None,
        smooth: float = 0.6,
    ) -> "Figure":
        """`trainer.history.plot("curves.png")`: a panel for each metric.

        Training is drawn as it is, from 30 points on smoothed too, validation over it, and the best
        validation (or the best epoch of training, where there is none) is marked.

        Args:
            path: where to write the picture, a PNG for instance; None for nowhere.
            only: names of the metrics to draw, without the mode; all by default.
            smooth: how much the smoothed line keeps of itself from point to point, in [0, 1).

        Returns:
            The matplotlib figure. In a notebook it shows where it is the last thing in a cell.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is nothing to draw.
        """
        from solstice.history._plot import draw, save

        figure = draw({"": self}, only=only, smooth=smooth)
        return save(figure, path)

    def on_fit_start(self, record: Record) -> None:
        """Begins anew."""
        self._left_out = LeftOut()
        if record.mode == "train":
            self.rows = AppendOnly()

    def on_step_end(self, record: Record) -> None:
        """Keeps the steps since the last time."""
        if record.mode == "train":
            self._keep(record, "steps")

    def on_epoch_end(self, record: Record) -> None:
        """Keeps the epoch, or the evaluation."""
        if record.epoch_step > 0 and record.mode != "predict":
            self._keep(record, "epoch")

    def state_dict(self) -> dict[str, Any]:
        """The rows; nothing, if there are none yet."""
        return {"rows": self.rows} if self.rows else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the rows of a run that is resumed."""
        rows = read_rows(state.get("rows"), "History.state_dict()['rows']")
        self.rows = AppendOnly(rows)

    def _keep(self, record: Record, span: str) -> None:
        metrics = record.metrics
        if self.scalars_only:
            metrics = {name: value for name, value in metrics.items() if _is_number(value)}
        self.rows.append(row_of(record, span, self._small(metrics)))

    def _small(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Those that are not too large; the others are named, once in a run."""
        most = self.max_size
        large = {n: v for n, v in metrics.items() if most is not None and np.size(v) > most}
        self._left_out.name(
            large,
            f"trainer.history leaves out arrays of more than {most} numbers:",
            "To keep them, write `solstice.History()` among the callbacks of the Trainer",
        )
        return {name: value for name, value in metrics.items() if name not in large}

    def _cells(self) -> list[list[str]]:
        """A line for each epoch or evaluation step, with the metrics of all modes."""
        names = _by_metric(self.names())
        lines: dict[tuple[int, int], dict[str, str]] = {}
        for row in self.rows:
            if row["span"] == "epoch":
                line = lines.setdefault((row["epoch"], row["step"]), {})
                line.update(
                    {
                        f"{row['mode']}/{name}": f"{value:.4g}"
                        for name, value in metrics_in(row).items()
                        if _is_number(value)
                    }
                )
        table = [
            [*_moment(epoch, step), *(line.get(name, "") for name in names)]
            for (epoch, step), line in lines.items()
        ]
        return [["epoch", "step", *names], *table]

    def _lines(self) -> list[list[str]]:
        head, *lines = self._cells()
        if not lines:
            return [[f"History({len(self.rows)} rows)"]]
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        shown = lines if len(lines) <= _SHOWN else [*lines[:4], *lines[4 - _SHOWN :]]
        table = [
            [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
            for line in [head, *shown]
        ]
        if len(lines) > _SHOWN:
            table.insert(5, ["...".rjust(widths[0])])
        return table


@dataclass(frozen=True)
class _Row:
    step: int
    epoch: int
    mode: Literal["train", "val", "test"]
    span: Literal["epoch", "steps"]


def read_rows(rows: Any, where: str) -> list[dict[str, Any]]:
    """Rows as they were read from a file, or a SchemaError."""
    read(list[_Row], rows, where)
    for row in read(list[dict[str, Any]], rows, where):
        for name, value in row.items():
            try:
                np.ndim(value)
            except ValueError as error:
                raise SchemaError(f"{where} has no metric at {name!r:.60}: {error}") from error
    return list(rows)


def row_of(record: Record, span: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a moment."""
    moment = {"step": record.step, "epoch": record.epoch, "mode": record.mode, "span": span}
    return {**moment, **{column_of(name): value for name, value in metrics.items()}}


def column_of(name: str) -> str:
    """Where a row has a metric: under its name, or under "metric/step" for "step"."""
    return f"metric/{name}" if _TAKEN.fullmatch(name) else name


def metrics_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a row by their own names."""
    return {
        name.removeprefix("metric/") if _TAKEN.fullmatch(name) else name: value
        for name, value in row.items()
        if name not in MOMENT
    }


def _html_row(tag: str, cells: list[str]) -> str:
    """A name may be of a file of somebody else, and is shown as text whatever it holds."""
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _by_metric(names: list[str]) -> list[str]:
    """The same metric of all modes side by side."""
    metrics = list(dict.fromkeys(name.partition("/")[2] for name in names))
    return sorted(names, key=lambda name: metrics.index(name.partition("/")[2]))


def _moment(epoch: int, step: int) -> list[str]:
    return [str(epoch + 1), f"{step:,}"] if step else ["-", "-"]  # an evaluation by itself


def as_json(row: Mapping[str, Any]) -> str:
    """A row as JSON. NaN and infinity are written as Python writes and reads them."""
    return json.dumps({name: _plain(value) for name, value in row.items()})


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist() if hasattr(value, "dtype") else value


def as_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a CSV: numbers so that they are read back the same, and arrays as JSON."""
    return {
        name: json.dumps(_plain(value)) if np.ndim(value) else value for name, value in row.items()
    }


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real)
