"""Loggers into files of text."""

import csv
import io
import os
from abc import abstractmethod
from collections.abc import Collection
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

from solstice._console import warn
from solstice._paths import check_file, check_regular, local_path
from solstice._record import Record
from solstice.history._history import MOMENT, as_cells, as_json
from solstice.loggers._logger import Logger, Start


class _File(Logger):
    """A file with a line for each row, and perhaps a line before them."""

    _head = 0
    """Lines before the first row."""

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        every: int | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(every=every, only=only)
        self.path = local_path(path, "path")
        self._at = self.path
        self._file: TextIO | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def on_fit_start(self, record: Record) -> None:
        """Takes down where the file is; it stays there if the working directory changes."""
        super().on_fit_start(record)
        if record.mode == "train" or not self._at.is_absolute():
            self._at = self.path.absolute()
        check_file(self._at, repr(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on in the file of the saved run."""
        super().load_state_dict(state)
        if self._start.kind == "resumed":
            self._check_file(self._start)

    def open(self, start: Start) -> None:
        """Opens the file; that of an earlier run is kept under another name, such as `a-1.csv`."""
        check_regular(self._at, f"the file of {type(self).__name__}")
        self._at.parent.mkdir(parents=True, exist_ok=True)
        if start.kind == "new" and self._at.exists():
            self._at.rename(free_name(self._at))
        lines = self._lines()
        if start.kind == "resumed":
            lines = lines[: self._head + start.rows]
        self._replace("".join(lines))

    @abstractmethod
    def _text_of(self, row: dict[str, Any]) -> str | None:
        """The line of a row in the file that there is; None if it has no place there."""

    @abstractmethod
    def write(self, row: dict[str, Any]) -> None:
        """Writes a line."""

    def close(self, error: BaseException | None) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def about(self) -> dict[str, Any]:
        """Where the rows are."""
        return {"path": str(self.path)}

    def _check_file(self, start: Start) -> None:
        """That the rows up to the checkpoint are there, since what follows them is cut away.

        Raises:
            ValueError: it is the file of something else.
        """
        rows = self._lines()[self._head :]
        was = start.about.get("path")
        if len(rows) < start.rows and (not rows or was == str(self.path)):
            self._rows = len(rows)
            warn(
                f"{self!r} has {len(rows):,} of the {start.rows:,} rows that the resumed run had "
                f"written to {was!r}: the others will be missing, unless you begin once more with "
                f"that file at {self._at}",
                stacklevel=2,
            )
            return
        newest = rows[start.rows - len(start.newest) : start.rows]
        if [line.rstrip() for line in newest] != [
            (self._text_of(row) or "").rstrip() for row in start.newest
        ]:
            raise ValueError(
                f"{self!r} is not the file of the resumed run, which had written {start.rows:,} "
                f"rows to {was!r}: row {start.rows:,} is another, and no row was cut. Give "
                f"{type(self).__name__} the path of that file, or one where there is none"
            )

    def _lines(self) -> list[str]:
        """The whole lines: one that a process began and did not end is none."""
        if not self._at.exists():
            return []
        check_regular(self._at, f"the file of {type(self).__name__}")
        with self._at.open(newline="", encoding="utf-8") as file:
            return [line for line in file if line.endswith("\n")]

    def _replace(self, text: str) -> None:
        """Makes this the text of the file, in one go, and opens it to write more."""
        self.close(None)
        new = self._at.with_name(f".{self._at.name}.new")
        with new.open("w", newline="", encoding="utf-8") as file:
            file.write(text)
        os.replace(new, self._at)
        self._file = self._at.open("a", newline="", encoding="utf-8")

    def _append(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line)
        self._file.flush()


class JSONLines(_File):
    """`JSONLines("runs/a.jsonl", every=50)`: a line of JSON for each row, arrays as lists.

    `pandas.read_json(path, lines=True)` reads it, as does `solstice.read_history(path)`.

    Args:
        path: the file. When a run begins anew, that of an earlier run is kept under another name. A
            relative path is in the working directory in which the run begins.
        every: log the training metrics of every so many steps too.
        only: names of the metrics to log, without the mode; all by default.

    Raises:
        ValueError: `every` is not a whole number from 1 on, or `path` is a URL; or, when a run is
            resumed, the file is another than the one that it had written.
    """

    def write(self, row: dict[str, Any]) -> None:
        """Writes a line."""
        self._append(self._text_of(row))

    def _text_of(self, row: dict[str, Any]) -> str:
        """The line of a row."""
        return f"{as_json(row)}\n"


class CSV(_File):
    """`CSV("runs/a.csv", every=50)`: a line for each row, a column for each metric.

    `pandas.read_csv(path)` reads it, as does `solstice.read_history(path)`. Numbers are written so
    that they are read back the same, and arrays as JSON.

    Args:
        path: the file. When a run begins anew, that of an earlier run is kept under another name. A
            relative path is in the working directory in which the run begins.
        every: log the training metrics of every so many steps too.
        only: names of the metrics to log, without the mode; all by default.

    Raises:
        ValueError: `every` is not a whole number from 1 on, or `path` is a URL; or, when a run is
            resumed, the file is another than the one that it had written.
    """

    _head = 1

    _columns: list[str]

    def name_of(self, metric: str) -> str:
        """Without breaks of lines, since the head of the file is one line."""
        return " ".join(metric.replace("\0", " ").splitlines())

    def open(self, start: Start) -> None:
        """Opens the file, and takes up its columns."""
        super().open(start)
        self._columns = self._read_columns()

    def write(self, row: dict[str, Any]) -> None:
        """Writes a line; a metric that is new has its column added to those before."""
        if not {*row} <= {*self._columns}:
            rows = list(csv.DictReader(self._lines()))
            self._columns = list(dict.fromkeys([*MOMENT, *self._columns, *row]))
            self._replace(self._text([dict.fromkeys(self._columns), *rows], head=True))
        self._append(self._text([row]))

    def _text_of(self, row: dict[str, Any]) -> str | None:
        """The line of a row; None if the file has no column for one of its metrics."""
        self._columns = self._read_columns()
        return self._text([row]) if {*row} <= {*self._columns} else None

    def _read_columns(self) -> list[str]:
        return [name for line in csv.reader(self._lines()[:1]) for name in line]

    def _text(self, rows: list[dict[str, Any]], *, head: bool = False) -> str:
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, self._columns, restval="")
        if head:
            writer.writeheader()
            rows = rows[1:]
        writer.writerows(map(as_cells, rows))
        return out.getvalue()


def free_name(path: Path) -> Path:
    """`a-1.csv` for `a.csv`, or the first such that there is not."""
    index = 1
    while (free := path.with_stem(f"{path.stem}-{index}")).exists():
        index += 1
    return free
