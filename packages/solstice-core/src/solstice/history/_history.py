"""History: the table of a run's metrics."""

import csv
import html
import importlib
import shutil
from collections.abc import Collection
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from solstice._arguments import choice, switch, text, whole_or_none
from solstice._better import better
from solstice._callback import Callback
from solstice._history_rows import (
    MOMENT,
    as_cells,
    as_json,
    column_of,
    is_number,
    metrics_in,
    read_rows,
    row_of,
)
from solstice._left_out import LeftOut
from solstice._paths import local_path
from solstice._record import Record
from solstice._text_table import aligned
from solstice.history._rows import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPANS = ("epoch", "steps")

_SHOWN = 10
"""The most epochs in a `repr`."""

_WIDTH = 100
"""Characters in a line of a `repr` without a terminal."""


class History(Callback):
    """`trainer.history`: the metrics of the Trainer's newest run as a table.

    ```python
    trainer.fit(exp, train_ds, val_ds, num_epochs=10)
    trainer.history.plot("curves.png")
    trainer.history.to_csv("metrics.csv")
    ```

    `Trainer(callbacks=[History(every=50)])` adds the training metrics of every 50 steps.

    A row is a dict with "step" and "epoch"; "mode" ("train", "val" or "test"); "span", which is
    "epoch" for the metrics of an epoch or an evaluation, and "steps" for those of the training
    steps since the previous "steps" row; and the metrics by name. A metric that is itself named
    "step" is in the column "metric/step" of rows and files, and so for the other three.

    Args:
        every: also keep the training metrics after this number of steps; None for epochs only.
        scalars_only: leave out metrics that are not numbers, such as a confusion matrix.
        max_size: leave out larger arrays, with a warning that names them; None keeps all. The
            Trainer's own History keeps arrays of up to 256 numbers.

    Attributes:
        rows: the rows, oldest first. A new training run starts with an empty list, a resumed one
            with the rows up to its checkpoint. Rows are only added, never changed, because a
            checkpoint writes each row once. For your own notes, write a callback.

    Raises:
        ValueError: an argument is out of range.
    """

    modes = ("train", "val", "test")  # predictions have no metrics
    needs = ("metrics",)
    waits_for_device = False  # a row is made when somebody reads it

    def __init__(
        self, *, every: int | None = None, scalars_only: bool = False, max_size: int | None = None
    ) -> None:
        self.every = whole_or_none("every", every, 1, "steps")
        self.scalars_only = switch("scalars_only", scalars_only)
        self.max_size = whole_or_none("max_size", max_size, 0, "numbers")
        self._left_out = LeftOut()
        self._seen = set[tuple[str, str]]()
        self.rows: list[dict[str, Any]] = Rows()
        self._replaced: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return True  # else `history or other` would replace an empty History

    def __repr__(self) -> str:
        """The epochs as a table, with the metrics that fit in a line."""
        head, *lines = self._cells()
        if not lines:
            return f"History({len(self.rows)} rows)"
        if len(lines) > _SHOWN:
            lines[4 : 4 - _SHOWN] = [["...", *[""] * (len(head) - 1)]]
        count, room = len(head), shutil.get_terminal_size((_WIDTH, 24)).columns
        table = aligned([head, *lines])
        while len(table[0]) > room and count > 4:
            count -= 1
            table = aligned([line[:count] for line in (head, *lines)])
        if head[count:]:
            table.append(f"and {len(head) - count} metrics more, such as {head[count]}")
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
            name: the metric with its mode, such as "val/loss".
            span: "epoch", or "steps" for the rows between epochs.

        Returns:
            The training steps of the rows, and the values, including NaN.

        Raises:
            KeyError: the metric does not exist; the message lists the existing ones.
        """
        found = self._points(name, choice("span", span, _SPANS))
        return [row["step"] for row, _ in found], [value for _, value in found]

    def _points(
        self, name: str, span: Literal["epoch", "steps"]
    ) -> list[tuple[dict[str, Any], float]]:
        """The rows that have a metric, and its values."""
        mode, _, metric = text("name", name, "val/loss").partition("/")
        there = [row for row in self.rows if (row["mode"], row["span"]) == (mode, span)]
        column = column_of(metric)
        found = [(row, float(row[column])) for row in there if is_number(row.get(column))]
        if not found:
            names = ", ".join(self.names(span)) or "none"
            raise KeyError(f"there is no metric {name!r} by {span}; there are: {names}")
        return found

    def names(self, span: Literal["epoch", "steps"] = "epoch") -> list[str]:
        """`history.names()`: the numeric metrics with their modes, such as "train/loss"."""
        choice("span", span, _SPANS)
        found = {
            f"{row['mode']}/{name}": None
            for row in self.rows
            if row["span"] == span
            for name, value in metrics_in(row).items()
            if is_number(value)
        }
        return list(found)

    def best(self, name: str, mode: Literal["min", "max"] | None = None) -> dict[str, Any]:
        """`history.best("val/accuracy")["epoch"]`: the row with the best value of a metric.

        Args:
            name: the metric with its mode.
            mode: whether a smaller ("min") or a larger ("max") value is better. By default the name
                decides: smaller for a loss, an error, a perplexity and the like, else larger.

        Raises:
            KeyError: the metric does not exist, or all values are NaN.
        """
        known = [(row, value) for row, value in self._points(name, "epoch") if not np.isnan(value)]
        if not known:
            raise KeyError(f"{name!r} is NaN in all {len(self.rows)} rows")
        sign = 1 if better(name, mode) == "min" else -1
        return min(known, key=lambda point: sign * point[1])[0]

    def to_pandas(self) -> Any:
        """`history.to_pandas()`: a `pandas.DataFrame` with the same rows.

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
        """`history.to_csv("metrics.csv")`: write a column for each metric; arrays become JSON."""
        columns = dict.fromkeys([*MOMENT, *(name for row in self.rows for name in row)])
        # Without `newline`, Windows would end each line twice.
        with local_path(path, "path").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(map(as_cells, self.rows))

    def to_jsonl(self, path: str | PathLike[str]) -> None:
        """`history.to_jsonl("metrics.jsonl")`: write a JSON line per row; arrays become lists."""
        with local_path(path, "path").open("w", encoding="utf-8") as file:
            file.writelines(f"{as_json(row)}\n" for row in self.rows)

    def plot(
        self,
        path: str | PathLike[str] | None = None,
        *,
        only: Collection[str] | None = None,
        smooth: float = 0.6,
    ) -> "Figure":
        """`trainer.history.plot("curves.png")`: plot each metric in its own panel.

        Training is drawn raw, and also smoothed from 30 points on; validation is drawn over it. The
        best validation is marked, or without validation the best training epoch.

        Args:
            path: the picture file to write, such as a PNG; None to write none.
            only: names of the metrics to draw, without the mode; all by default.
            smooth: decay of the exponential moving average per point, in [0, 1); 0 smooths nothing.

        Returns:
            The matplotlib figure. A notebook shows it if it is the last expression of a cell.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is no metric to draw.
        """
        # Here, because matplotlib is optional, and slow to import.
        from solstice._picture import save
        from solstice.history._plot import draw

        figure = draw({"": self}, only=only, smooth=smooth)
        return save(figure, path)

    def on_fit_start(self, record: Record) -> None:
        """Starts a new table for a training run; an evaluation adds to the old one."""
        self._left_out, self._seen = LeftOut(), set()
        if record.mode == "train":
            self._replaced, self.rows = self.rows, Rows()

    def on_epoch_start(self, record: Record) -> None:
        """Drops the rows of the run before."""
        self._replaced = None

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Restores the rows of the run before, if this one failed before its first epoch."""
        if self._replaced is not None:
            self._replaced, self.rows = None, self._replaced

    def on_step_end(self, record: Record) -> None:
        """Adds a row of the training steps since the previous one."""
        if record.mode == "train":
            self._keep(record, "steps")

    def on_epoch_end(self, record: Record) -> None:
        """Adds a row of the epoch or the evaluation."""
        if record.epoch_step > 0:
            self._keep(record, "epoch")

    def state_dict(self) -> dict[str, Any]:
        """The rows; an empty dict if there are none."""
        return {"rows": self.rows} if self.rows else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the rows of a resumed run.

        Raises:
            SchemaError: the state does not hold rows.
        """
        rows = read_rows(state.get("rows"), "History.state_dict()['rows']")
        self.rows = Rows(rows)

    def _keep(self, record: Record, span: str) -> None:
        """Adds a row, which is made when somebody reads it.

        The first of its kind is made now, so that its errors and warnings come early.
        """
        kind, rows = (record.mode, span), self.rows
        settings = self.scalars_only, self.max_size, self._left_out
        row = partial(_row, record.only("metrics"), span, *settings)
        if kind in self._seen and isinstance(rows, Rows) and not record.is_computed("metrics"):
            rows.add_later(row)
        else:
            self._seen.add(kind)
            rows.append(row())

    def _cells(self) -> list[list[str]]:
        """A line for each epoch or evaluation step, with the metrics of all modes."""
        names = _by_metric(self.names())
        lines: dict[tuple[int, int], dict[str, str]] = {}
        for row in self.rows:
            if row["span"] == "epoch":
                line = lines.setdefault((row["epoch"], row["step"]), {})
                line |= {
                    f"{row['mode']}/{name}": f"{value:.4g}"
                    for name, value in metrics_in(row).items()
                    if is_number(value)
                }
        table = [
            [*_moment(epoch, step), *(line.get(name, "") for name in names)]
            for (epoch, step), line in lines.items()
        ]
        return [["epoch", "step", *names], *table]


def _row(
    record: Record, span: str, scalars_only: bool, most: int | None, left_out: LeftOut
) -> dict[str, Any]:
    """The row of a moment; a function and no method, because a History holds it."""
    metrics = record.metrics
    if scalars_only:
        metrics = {name: value for name, value in metrics.items() if is_number(value)}
    large = {n: v for n, v in metrics.items() if most is not None and _size(v) > most}
    left_out.name(
        large,
        f"trainer.history leaves out arrays of more than {most} numbers:",
        "To keep them, write `solstice.History()` among the callbacks of the Trainer",
    )
    return row_of(record, span, {n: v for n, v in metrics.items() if n not in large})


def _size(value: Any) -> int:
    return value.size if isinstance(value, np.ndarray) else 1


def _html_row(tag: str, cells: list[str]) -> str:
    """A row of an HTML table; escaped, because names may come from another person's file."""
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _by_metric(names: list[str]) -> list[str]:
    """The names sorted so that a metric's modes are next to each other."""
    metrics = list(dict.fromkeys(name.partition("/")[2] for name in names))
    return sorted(names, key=lambda name: metrics.index(name.partition("/")[2]))


def _moment(epoch: int, step: int) -> list[str]:
    return [str(epoch + 1), f"{step:,}"] if step else ["-", "-"]  # an evaluation by itself
