"""History: the table of a run's metrics."""

import csv
import difflib
import importlib
from collections.abc import Collection
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from solstice._arguments import choice, switch, text, whole, whole_or_none
from solstice._better import Direction, better
from solstice._callback import Callback
from solstice._history_rows import (
    MOMENT,
    as_cells,
    as_json,
    column_of,
    is_numeric,
    metrics_in,
    read_rows,
    row_of,
)
from solstice._left_out import LeftOut
from solstice._paths import local_path
from solstice._per_member import PerMember, best_of, is_vector, of_member, rows_of_members
from solstice._record import Record
from solstice.history._rows import Rows
from solstice.history._table import as_html, as_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPANS = ("epoch", "steps")


class History(Callback):
    """`trainer.history`: the metrics of the Trainer's newest run as a table.

    ```python
    trainer.fit(exp, train_ds, val_ds, num_epochs=10)
    trainer.history.plot("curves.png")
    trainer.history.to_csv("metrics.csv")
    ```

    `Trainer(callbacks=[History(every=50)])` adds the training metrics of every 50 steps.

    In a population, a metric is a `metrics.PerMember` array with a value for each member; NaN for
    members that have been removed. `history.member(3)` is the history of one of them.

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
        hyperparameters: those of the Trainer, as values of JSON.

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
        self.hyperparameters: dict[str, Any] = {}
        self._replaced: tuple[list[dict[str, Any]], dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return True  # else `history or other` would replace an empty History

    def __repr__(self) -> str:
        """The epochs as a table, with the metrics that fit in a line."""
        return as_text(self.rows, self.names()) or f"History({len(self.rows)} rows)"

    def _repr_html_(self) -> str:
        return as_html(self.rows, self.names())

    def series(
        self, name: str, span: Literal["epoch", "steps"] = "epoch"
    ) -> tuple[list[int], list[Any]]:
        """`steps, losses = history.series("val/loss")`: one metric over the run.

        Args:
            name: the metric with its mode, such as "val/loss".
            span: "epoch", or "steps" for the rows between epochs.

        Returns:
            The training steps of the rows, and the values, including NaN: floats, or an array of
            the members in each row.

        Raises:
            KeyError: the metric does not exist; the message lists the existing ones.
        """
        found = self._points(name, choice("span", span, _SPANS))
        return [row["step"] for row, _ in found], [value for _, value in found]

    def _points(
        self, name: str, span: Literal["epoch", "steps"]
    ) -> list[tuple[dict[str, Any], Any]]:
        """The rows that have a metric, and its values: a float, or those of the members."""
        mode, _, metric = text("name", name, "val/loss").partition("/")
        there = [row for row in self.rows if (row["mode"], row["span"]) == (mode, span)]
        column = column_of(metric)
        values = [(row, row[column]) for row in there if is_numeric(row.get(column))]
        found = [(row, v if is_vector(v) else float(v)) for row, v in values]
        if not found:
            names = self.names(span)
            close = difflib.get_close_matches(name, names, 1)
            raise KeyError(
                f"there is no metric {name!r} by {span}; there are: {', '.join(names) or 'none'}"
                + (f"; did you mean {close[0]!r}?" if close else "")
            )
        return found

    def names(self, span: Literal["epoch", "steps"] = "epoch") -> list[str]:
        """`history.names()`: the numeric metrics with their modes, such as "train/loss"."""
        choice("span", span, _SPANS)
        found = {
            f"{row['mode']}/{name}": None
            for row in self.rows
            if row["span"] == span
            for name, value in metrics_in(row).items()
            if is_numeric(value)
        }
        return list(found)

    def best(self, name: str, mode: Literal["min", "max"] | None = None) -> dict[str, Any]:
        """`history.best("val/accuracy")["epoch"]`: the row with the best value of a metric.

        In a population it is the row of the best member, as that of a run of this member alone,
        with the number of the member at "member".

        Args:
            name: the metric with its mode.
            mode: whether a smaller ("min") or a larger ("max") value is better. By default the name
                decides: smaller for a loss, an error, a perplexity and the like, else larger.

        Raises:
            KeyError: the metric does not exist, or all values are NaN.
        """
        found = self._points(name, "epoch")
        direction = better(name, mode)
        points = [(row, *_best(value, direction)) for row, value in found]
        known = [point for point in points if not np.isnan(point[2])]
        if not known:
            raise KeyError(f"{name!r} is NaN in all {len(self.rows)} rows")
        sign = 1 if direction == "min" else -1
        row, member, _ = min(known, key=lambda point: sign * point[2])
        return row if member is None else of_member(row, member) | {"member": member}

    def member(self, member: int) -> "History":
        """`history.member(3).plot()`: the history of one member of a population.

        Its rows are those of a run of this member alone; NaN after the member has been removed.

        Raises:
            ValueError: there is no population, or no such member.
        """
        count = min((len(v) for row in self.rows for v in row.values() if is_vector(v)), default=0)
        if count == 0:
            raise ValueError("the history is not of a population: no metric has members")
        at = whole("member", member, 0, most=count - 1)
        history = History(every=self.every)
        history.hyperparameters = self.hyperparameters
        history.rows = Rows(of_member(row, at) for row in self.rows)
        return history

    def to_pandas(self) -> Any:
        """`history.to_pandas()`: a `pandas.DataFrame` with the same rows.

        Of a population, it has a row for each member, with a column "member".

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
        return pandas.DataFrame([row for each in self.rows for row in rows_of_members(each)])

    def to_csv(self, path: str | PathLike[str]) -> None:
        """`history.to_csv("metrics.csv")`: write a column for each metric; arrays become JSON.

        Those of the members of a population are `{"members": [0.1, 0.2]}`.
        """
        columns = dict.fromkeys([*MOMENT, *(name for row in self.rows for name in row)])
        # Without `newline`, Windows would end each line twice.
        with local_path(path, "path").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(map(as_cells, self.rows))

    def to_jsonl(self, path: str | PathLike[str]) -> None:
        """`history.to_jsonl("metrics.jsonl")`: write a JSON line per row; arrays become lists.

        Those of the members of a population are `{"members": [0.1, 0.2]}`.
        """
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
        best validation is marked, or without validation the best training epoch. A population is a
        fan of thin lines, with the best member over it. The interval of `val_confidence=` is a band
        around its metric.

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
            self._replaced = self.rows, self.hyperparameters
            self.rows, self.hyperparameters = Rows(), dict(record.hyperparameters)

    def on_epoch_start(self, record: Record) -> None:
        """Drops the rows of the run before."""
        self._replaced = None

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Restores the rows of the run before, if this one failed before its first epoch."""
        if self._replaced is not None:
            (self.rows, self.hyperparameters), self._replaced = self._replaced, None

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


def _row(
    record: Record, span: str, scalars_only: bool, most: int | None, left_out: LeftOut
) -> dict[str, Any]:
    """The row of a moment; a function and no method, because a History holds it."""
    metrics = record.metrics
    if scalars_only:
        metrics = {name: value for name, value in metrics.items() if is_numeric(value)}
    large = {n: v for n, v in metrics.items() if most is not None and _size(v) > most}
    left_out.name(
        large,
        f"trainer.history leaves out arrays of more than {most} numbers:",
        "To keep them, write `solstice.History()` among the callbacks of the Trainer",
    )
    return row_of(record, span, {n: v for n, v in metrics.items() if n not in large})


def _size(value: Any) -> int:
    if isinstance(value, PerMember):
        return value.size // max(len(value), 1)  # of each member
    return value.size if isinstance(value, np.ndarray) else 1


def _best(value: Any, direction: Direction) -> tuple[int | None, float]:
    """The best member and its value, or a number."""
    return best_of(value, direction) if is_vector(value) else (None, value)
