"""Logger: base class that writes rows in a thread, and resumes without duplicate rows."""

import importlib
from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from solstice._arguments import names, whole_or_none
from solstice._callback import Callback
from solstice._history_rows import MOMENT, column_of, metrics_in, read_rows, row_of
from solstice._left_out import LeftOut
from solstice._paths import check_folder
from solstice._per_member import as_numbers, is_vector
from solstice._record import Record
from solstice._schema import read
from solstice._worker import Worker
from solstice.loggers._names import Names


@dataclass(frozen=True)
class Start:
    """The argument of `Logger.open`: whether and where a run continues.

    Attributes:
        kind: "new" for a new training run; "resumed" for one that continues from a checkpoint;
            "more" for an evaluation, whose rows are added to the existing ones.
        step: the number of training steps at the start.
        rows: number of valid rows of a resumed run. Rows after these were written after the
            checkpoint, and will be written again.
        newest: the valid rows of the newest step.
        about: the result of `Logger.about` when the checkpoint was saved.
        hyperparameters: those of the Trainer, as values of JSON.
    """

    kind: Literal["new", "resumed", "more"]
    step: int = 0
    rows: int = 0
    newest: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    about: dict[str, Any] = field(default_factory=dict[str, Any])
    hyperparameters: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class _State:
    rows: int
    newest: list[dict[str, Any]]
    about: dict[str, Any]


@dataclass
class _Logged:
    """The number of rows of a run, and the rows of its newest step."""

    count: int = 0
    newest: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def add(self, row: dict[str, Any]) -> None:
        if self.newest and self.newest[-1]["step"] != row["step"]:
            self.newest = []
        self.newest.append(row)
        self.count += 1


class Logger(Callback):
    """`class Print(Logger)`: a callback that writes metrics to your own tool.

    ```python
    class Print(solstice.loggers.Logger):
        def open(self, start):
            print("from step", start.step)

        def write(self, row):
            print(row)
    ```

    A row is a dict as in `solstice.History`: "step", "epoch", "mode", "span", and the metrics by
    name as Python numbers and NumPy arrays; those of a population are `metrics.PerMember` arrays.
    `write` runs in a thread, row by row in order; an
    exception in it ends the run at the next row or at the end. If the tool does not accept all
    values, override `takes`; if it does not accept all names, override `name_of`.

    Args:
        every: also log the training metrics after this number of steps.
        only: names of the metrics to log, without the mode; all by default.

    Raises:
        ValueError: `every` is not a whole number of 1 or more.
        TypeError: `only` does not contain names.
    """

    modes = ("train", "val", "test")  # predictions have no metrics
    needs = ("metrics",)
    has_side_effects = True
    processes = "first"

    def __init__(self, *, every: int | None = None, only: Collection[str] | None = None) -> None:
        self.every = whole_or_none("every", every, 1, "steps")
        self._only = names("only", only)
        self._left_out = LeftOut()
        self._names = Names(type(self).__name__, self.name_of)
        self._start = Start("more")
        self._is_open = False
        self._has_begun = False
        self._logged = _Logged()
        self._worker = Worker("solstice-logger")

    @abstractmethod
    def open(self, start: Start) -> None:
        """Opens the tool; called before the first row, in the main thread of the run."""

    @abstractmethod
    def write(self, row: dict[str, Any]) -> None:
        """Writes a row; called in a background thread, one row after the other."""

    def takes(self, value: Any) -> bool:
        """Whether the tool accepts a value; others are left out, and a warning names them once."""
        del value
        return True

    def name_of(self, metric: str) -> str:
        """`return metric.replace("@", "_")`: the name of a metric in the tool.

        It must depend only on the name. A warning lists renamed metrics once per run. If two
        metrics get the same name, the renamed ones are followed by a checksum.
        """
        return metric

    def close(self, error: BaseException | None) -> None:
        """Closes the tool after the last row; `error` is the exception that ended the run, or None.

        By default, it does nothing.
        """

    def about(self) -> dict[str, Any]:
        """Data that a resumed run needs, such as the id of the tool's run."""
        return {}

    def on_fit_start(self, record: Record) -> None:
        """Notes whether the run is new; `load_state_dict` changes this for a resumed one."""
        given = dict(record.hyperparameters)
        if record.mode == "train":
            self._start = Start("new", step=record.step, hyperparameters=given)
            self._logged, self._has_begun = _Logged(), False
        else:
            about = self.about()
            self._start = Start("more", step=record.step, about=about, hyperparameters=given)
        self._left_out = LeftOut()
        self._names = Names(type(self).__name__, self.name_of)

    def on_step_end(self, record: Record) -> None:
        """Logs the training metrics since the previous such row."""
        if record.mode == "train":
            self.log(row_of(record, "steps", record.metrics))

    def on_epoch_end(self, record: Record) -> None:
        """Logs the metrics of the epoch or the evaluation."""
        if record.epoch_step > 0:  # an epoch without steps has no metrics
            self.log(row_of(record, "epoch", record.metrics))

    def on_fit_end(self, record: Record) -> None:
        """Waits for the last row, and closes the tool."""
        self._end(None)

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Writes the remaining rows, and closes the tool."""
        self._end(error)

    def state_dict(self) -> dict[str, Any]:
        """The number of rows and the newest ones; all of them are written before it returns."""
        self._worker.wait()
        about = self.about() if self._has_begun else self._start.about
        return {"rows": self._logged.count, "newest": self._logged.newest, "about": about}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after these rows, if any was logged."""
        at = read(_State, state, f"{type(self).__name__}.state_dict()")
        newest = read_rows(at.newest, "the state of a logger")
        self._logged = _Logged(at.rows, newest)
        if at.rows or at.about:
            self._start = replace(
                self._start, kind="resumed", rows=at.rows, newest=newest, about=at.about
            )

    def log(self, row: dict[str, Any]) -> None:
        """`logger.log({**moment, "loss": 0.5})`: pass a row to the thread."""
        metrics = {
            n: v for n, v in metrics_in(row).items() if self._only is None or n in self._only
        }
        lost = {name: value for name, value in metrics.items() if not self.takes(value)}
        self._left_out.name(
            lost,
            f"{type(self).__name__} leaves out values that it cannot show:",
            "Choose metrics with `only=`; solstice.loggers.JSONLines accepts all",
        )
        kept = {name: value for name, value in metrics.items() if name not in lost}
        if not kept:
            return
        named = self._names.of(kept)
        kept = {column_of(named[name]): value for name, value in kept.items()}
        row = {name: row[name] for name in MOMENT} | kept
        self._submit(self.write, row)
        self._logged.add(row)

    def _submit(self, task: Callable[..., None], *arguments: Any) -> None:
        if not self._is_open:
            self.open(self._start)
            self._is_open = self._has_begun = True
        self._worker.submit(task, *arguments)

    def _end(self, error: BaseException | None) -> None:
        if not self._is_open:
            return
        try:
            self._worker.close()
        finally:
            self._is_open = False
            self.close(error)


class Placed(Logger):
    """A logger of local files, by default in a folder.

    Args:
        path: the user's path, maybe relative.
        every: as for `Logger`.
        only: as for `Logger`.
    """

    _check = staticmethod(check_folder)

    def __init__(self, path: Path, *, every: int | None, only: Collection[str] | None) -> None:
        super().__init__(every=every, only=only)
        self._given = self._at = path

    def on_fit_start(self, record: Record) -> None:
        """Resolves the path, so that a later change of the working directory has no effect."""
        super().on_fit_start(record)
        if record.mode == "train" or not self._at.is_absolute():
            self._at = self._given.absolute()
        self._check(self._at, repr(self))


def numbers_of(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a row: `{"train/loss": 0.5}`, or "train_steps/loss" for a "steps" row.

    Of a population, those of a metric are "train/loss/best" and "train/loss/median".
    """
    split = row["mode"] + ("_steps" if row["span"] == "steps" else "")
    numbers = as_numbers(metrics_in(row))
    return {f"{split}/{name}": value for name, value in numbers.items() if is_number(value)}


def is_number(value: object) -> bool:
    """Whether a value is a number, which every tool can show."""
    return isinstance(value, bool | int | float)


def is_shown(value: object) -> bool:
    """Whether `numbers_of` shows a value: a number, or a number for each member."""
    return is_number(value) or is_vector(value)


def imported(package: str, logger: str) -> Any:
    """The package of a logger.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"solstice.loggers.{logger} needs {package}: `pip install {package}`"
        ) from error
