"""The base of all loggers: rows in the background, and no row twice when a run is resumed."""

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from solstice._arguments import names, whole_or_none
from solstice._callback import Callback
from solstice._left_out import LeftOut
from solstice._record import Record
from solstice._schema import read
from solstice.history._history import MOMENT, column_of, metrics_in, read_rows, row_of
from solstice.loggers._names import Names


@dataclass(frozen=True)
class Start:
    """How a logger begins.

    Attributes:
        kind: "new" for a run of which nothing was logged yet; "resumed" for one that goes on;
            "more" for an evaluation, whose rows join those that are there.
        step: the training steps at which it begins.
        rows: how many rows of a resumed run count; those that were written later come again.
        newest: those of them that are of the newest step.
        about: what `about` gave when the run was saved.
    """

    kind: Literal["new", "resumed", "more"]
    step: int = 0
    rows: int = 0
    newest: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    about: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class _State:
    rows: int
    newest: list[dict[str, Any]]
    about: dict[str, Any]


class Logger(Callback):
    """Write the metrics of a run to a tool of your own: subclass, with `open`, `write`, `close`.

    ```python
    class Print(solstice.loggers.Logger):
        def open(self, start):
            print("from step", start.step)

        def write(self, row):
            print(row)
    ```

    A row is as in `solstice.History`: "step", "epoch", "mode", "span", and the metrics by name:
    Python numbers, and NumPy arrays. `write` is called in a thread, row by row in order; what it
    raises ends the run, at the next row or at the end. Where the tool cannot take all kinds of
    values, override `takes`; where it does not take all names, `name_of`.

    Args:
        every: log the training metrics of every so many steps too.
        only: names of the metrics to log, without the mode; all by default.

    Raises:
        ValueError: `every` is not a whole number from 1 on.
        TypeError: `only` holds no names.
    """

    needs = ("metrics",)
    has_side_effects = True

    def __init__(self, *, every: int | None = None, only: Collection[str] | None = None) -> None:
        self.every = whole_or_none("every", every, 1, "steps")
        self._only = names("only", only)
        self._left_out = LeftOut()
        self._names = Names(type(self).__name__, self.name_of)
        self._start = Start("more")
        self._is_open = False
        self._has_begun = False
        self._rows = 0
        self._newest: list[dict[str, Any]] = []
        self._writer: ThreadPoolExecutor | None = None
        self._writing: deque[Future[None]] = deque()

    @abstractmethod
    def open(self, start: Start) -> None:
        """Begins; called before the first row, in the thread of the run."""

    @abstractmethod
    def write(self, row: dict[str, Any]) -> None:
        """Writes a row; called in a thread, one row after the other."""

    def takes(self, value: Any) -> bool:
        """Whether a row may hold a value: what it may not hold is left out, and named once."""
        del value
        return True

    def name_of(self, metric: str) -> str:
        """`return metric.replace("@", "_")`: what the tool calls a metric.

        It must depend on the name alone. A warning names what is renamed, once a run. Of two
        metrics of one name, those that are renamed have a checksum behind it.
        """
        return metric

    def close(self, error: BaseException | None) -> None:
        """Ends, after the last row: `error` is what the run ended by, if it did."""

    def about(self) -> dict[str, Any]:
        """What a resumed run needs to find its place again, such as the id of a run."""
        return {}

    def on_fit_start(self, record: Record) -> None:
        """Takes down what kind of run begins."""
        if record.mode == "train":
            self._start = Start("new", step=record.step)
            self._rows, self._newest, self._has_begun = 0, [], False
        else:
            self._start = Start("more", step=record.step, about=self.about())
        self._left_out = LeftOut()
        self._names = Names(type(self).__name__, self.name_of)

    def on_step_end(self, record: Record) -> None:
        """Logs the steps since the last time."""
        if record.mode == "train":
            self.log(row_of(record, "steps", record.metrics))

    def on_epoch_end(self, record: Record) -> None:
        """Logs the epoch, or the evaluation."""
        if record.epoch_step > 0 and record.mode != "predict":
            self.log(row_of(record, "epoch", record.metrics))

    def on_fit_end(self, record: Record) -> None:
        """Waits for what is being written, and closes."""
        self._end(None)

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Writes all that there was."""
        self._end(error)

    def state_dict(self) -> dict[str, Any]:
        """How far it is; what counts has been written by then."""
        self._wait()
        about = self.about() if self._has_begun else self._start.about
        return {"rows": self._rows, "newest": self._newest, "about": about}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there, if anything was logged."""
        at = read(_State, state, f"{type(self).__name__}.state_dict()")
        self._rows, self._newest = at.rows, read_rows(at.newest, "the state of a logger")
        if self._rows or at.about:
            self._start = Start("resumed", self._start.step, self._rows, self._newest, at.about)

    def log(self, row: dict[str, Any]) -> None:
        """`logger.log({**moment, "loss": 0.5})`: hands a row to the thread."""
        metrics = {
            n: v for n, v in metrics_in(row).items() if self._only is None or n in self._only
        }
        lost = {name: value for name, value in metrics.items() if not self.takes(value)}
        self._left_out.name(
            lost,
            f"{type(self).__name__} leaves out what it cannot show:",
            "Choose by `only=`; solstice.loggers.JSONLines takes all",
        )
        kept = {name: value for name, value in metrics.items() if name not in lost}
        if not kept:
            return
        named = self._names.of(kept)
        kept = {column_of(named[name]): value for name, value in kept.items()}
        row = {name: row[name] for name in MOMENT} | kept
        self._submit(self.write, row)
        if self._newest and self._newest[-1]["step"] != row["step"]:
            self._newest = []
        self._newest.append(row)
        self._rows += 1

    def _submit(self, task: Callable[..., None], *arguments: Any) -> None:
        if not self._is_open:
            self.open(self._start)
            self._is_open = self._has_begun = True
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="solstice-logger")
        while self._writing and self._writing[0].done():
            self._writing.popleft().result()
        assert self._writer is not None
        self._writing.append(self._writer.submit(task, *arguments))

    def _wait(self) -> None:
        """Until all is written. Raises what went wrong."""
        while self._writing:
            self._writing.popleft().result()

    def _end(self, error: BaseException | None) -> None:
        if not self._is_open:
            return
        try:
            self._wait()
        finally:
            self._is_open = False
            if self._writer is not None:
                self._writer.shutdown()
            self._writing.clear()
            self.close(error)


def numbers_of(row: dict[str, Any]) -> dict[str, Any]:
    """`{"train/loss": 0.5}`: the numbers of a row; of every so many steps, "train_steps/loss"."""
    split = row["mode"] + ("_steps" if row["span"] == "steps" else "")
    return {f"{split}/{name}": v for name, v in metrics_in(row).items() if is_number(v)}


def is_number(value: Any) -> bool:
    """Whether a value is what every tool can show."""
    return isinstance(value, bool | int | float)


def is_missing(package: str, logger: str) -> ImportError:
    """What to raise where the package of a logger is not installed."""
    return ImportError(f"solstice.loggers.{logger} needs {package}: `pip install {package}`")
