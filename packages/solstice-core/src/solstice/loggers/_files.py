"""Loggers that write text files: CSV and JSON lines."""

import csv
import io
import os
from abc import abstractmethod
from collections.abc import Collection
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

from solstice._console import warn
from solstice._history_rows import MOMENT, as_cells, as_json
from solstice._paths import check_file, check_regular, free_name, local_path
from solstice.loggers._logger import Placed, Start


class _File(Placed):
    """A text file with a line for each row, and optionally a header line."""

    _check = staticmethod(check_file)

    _head = 0
    """Number of lines before the first row."""

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        every: int | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        self.path = local_path(path, "path")
        super().__init__(self.path, every=every, only=only)
        self._file: TextIO | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def run_folder(self) -> Path | None:
        """The folder of the file, in which the Trainer keeps `run.json`.

        None for a file without a folder, such as "metrics.csv", because the working directory is
        not that of one run.
        """
        return None if self._given.parent == Path() else self._at.parent

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Checks that the file is that of the resumed run.

        Raises:
            ValueError: it is another file.
        """
        super().load_state_dict(state)
        if self._start.kind == "resumed":
            self._check_file(self._start)

    def open(self, start: Start) -> None:
        """Opens the file; a new run renames the file of an earlier one, such as to `a-1.csv`."""
        check_regular(self._at, f"the file of {type(self).__name__}")
        self._at.parent.mkdir(parents=True, exist_ok=True)
        if start.kind == "new" and self._at.exists():
            self._at.rename(free_name(self._at))
        lines = self._lines()
        if start.kind == "resumed":
            lines = lines[: self._head + start.rows]
        self._replace("".join(lines))  # without an unfinished last line

    @abstractmethod
    def _text_of(self, row: dict[str, Any]) -> str | None:
        """The line of a row in the current file; None if the file cannot have this row."""

    def close(self, error: BaseException | None) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def about(self) -> dict[str, Any]:
        """The path of the file."""
        return {"path": str(self.path)}

    def _check_file(self, start: Start) -> None:
        """Checks that the file has the rows up to the checkpoint, since later lines are removed.

        Raises:
            ValueError: the file has other rows.
        """
        rows = self._lines()[self._head :]
        was = start.about.get("path")
        if len(rows) < start.rows and (not rows or was == str(self.path)):
            self._logged.count = len(rows)
            warn(
                f"{self!r} has {len(rows):,} of the {start.rows:,} rows that the resumed run had "
                f"written to {was!r}: the others will be missing. To keep them, restart with "
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
                f"rows to {was!r}: row {start.rows:,} differs, and no row was removed. Give "
                f"{type(self).__name__} the path of that file, or a path without a file"
            )

    def _lines(self) -> list[str]:
        """The complete lines, without one that a killed process left unfinished."""
        if not self._at.exists():
            return []
        check_regular(self._at, f"the file of {type(self).__name__}")
        with self._at.open(newline="", encoding="utf-8") as file:
            return [line for line in file if line.endswith("\n")]

    def _replace(self, text: str) -> None:
        """Replaces the text of the file atomically, and opens the file to append."""
        self.close(None)
        new = self._at.with_name(f".{self._at.name}.new")
        with new.open("w", newline="", encoding="utf-8") as file:
            file.write(text)
        os.replace(new, self._at)
        self._file = self._at.open("a", newline="", encoding="utf-8")

    def _append(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line)
        self._file.flush()  # after each row, so that a killed process loses none


class JSONLines(_File):
    """`JSONLines("runs/a/rows.jsonl", every=50)`: write a JSON line for each row, arrays as lists.

    `pandas.read_json(path, lines=True)` and `solstice.read_history(path)` read it.

    Args:
        path: the file. A new run renames the file of an earlier one, such as to `rows-1.csv`. A
            relative path is resolved at the start of a run. In a folder, the Trainer writes
            `run.json` beside it, with the hyper-parameters, so give each run a folder of its own.
        every: also log the training metrics after this number of steps.
        only: names of the metrics to log, without the mode; all by default.

    Raises:
        ValueError: `every` is not a whole number of 1 or more, or `path` is a URL; or, when a run
            is resumed, the file is not the one that it had written.
    """

    def write(self, row: dict[str, Any]) -> None:
        """Writes the line of a row."""
        self._append(self._text_of(row))

    def _text_of(self, row: dict[str, Any]) -> str:
        """The line of a row."""
        return f"{as_json(row)}\n"


class CSV(_File):
    """`CSV("runs/a/rows.csv", every=50)`: write a line for each row, with a column for each metric.

    `pandas.read_csv(path)` and `solstice.read_history(path)` read it. Numbers keep their full
    precision; arrays are written as JSON.

    Args:
        path: the file. A new run renames the file of an earlier one, such as to `rows-1.csv`. A
            relative path is resolved at the start of a run. In a folder, the Trainer writes
            `run.json` beside it, with the hyper-parameters, so give each run a folder of its own.
        every: also log the training metrics after this number of steps.
        only: names of the metrics to log, without the mode; all by default.

    Raises:
        ValueError: `every` is not a whole number of 1 or more, or `path` is a URL; or, when a run
            is resumed, the file is not the one that it had written.
    """

    _head = 1

    _columns: list[str]

    def name_of(self, metric: str) -> str:
        """The name without line breaks, since the header is one line."""
        return " ".join(metric.replace("\0", " ").splitlines())

    def open(self, start: Start) -> None:
        """Opens the file, and reads its columns."""
        super().open(start)
        self._columns = self._read_columns()

    def write(self, row: dict[str, Any]) -> None:
        """Writes the line of a row; for a new metric, rewrites the file with one more column."""
        if not {*row} <= {*self._columns}:
            rows = list(csv.DictReader(self._lines()))
            self._columns = list(dict.fromkeys([*MOMENT, *self._columns, *row]))
            self._replace(self._text(rows, head=True))
        self._append(self._text([row]))

    def _text_of(self, row: dict[str, Any]) -> str | None:
        """The line of a row; None if the file has no column for one of the metrics."""
        self._columns = self._read_columns()
        return self._text([row]) if {*row} <= {*self._columns} else None

    def _read_columns(self) -> list[str]:
        return [name for line in csv.reader(self._lines()[:1]) for name in line]

    def _text(self, rows: list[dict[str, Any]], *, head: bool = False) -> str:
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, self._columns, restval="")
        if head:
            writer.writeheader()
        writer.writerows(map(as_cells, rows))
        return out.getvalue()
