"""Logger for TensorBoard, without TensorFlow."""

import re
import uuid
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solstice import _tree
from solstice._arguments import mapping, whole_or_none
from solstice._console import warn
from solstice._experiment import params_of
from solstice._history_rows import metrics_in
from solstice._hyperparameters import flat
from solstice._paths import free_name, local_path
from solstice._per_member import as_numbers
from solstice._record import Record
from solstice.loggers._events import EventFile
from solstice.loggers._logger import Placed, Start, imported, is_number

_REFUSED = re.compile(r"[^-/\w.]")

_BINS = 64
"""Bins of a histogram, of equal width."""

_CURVES = {"epoch": "", "steps": "_steps"}


class TensorBoard(Placed):
    """`TensorBoard("runs/a", every=50)`: log to TensorBoard; then run `tensorboard --logdir runs`.

    Scalars are named "train/loss" and "val/loss"; with `every`, those between epochs
    "train_steps/loss". Those of a population are the scalars "val/loss/best" and "val/loss/median",
    and a histogram. An array of one axis is shown as a histogram; of two axes (such as a
    confusion matrix), three (height, width, channels) or four (a batch of these) as an image. Needs
    `tensorboardX`, but not TensorFlow.

    Args:
        directory: the folder of this run. A new run moves the events of an earlier one to another
            folder, such as `a-1`.
        every: also log the training metrics after this number of steps.
        only: names of the metrics to log, without the mode; all by default.
        hparams: hyper-parameters by name (numbers, text, booleans), for TensorBoard's table of
            runs, in addition to those of the Trainer. Of nested ones, the names are such as
            "optimizer.rate".
        histograms: also show histograms of the params after this number of epochs: of
            `exp.params`, those of `exp.learner`, or all arrays.

    Raises:
        ImportError: tensorboardX is not installed.
        ValueError: `every` or `histograms` is not a whole number of 1 or more, or `directory` is a
            URL; or, when a run is resumed, the folder has the events of another run.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        every: int | None = None,
        only: Collection[str] | None = None,
        hparams: Mapping[str, Any] | None = None,
        histograms: int | None = None,
    ) -> None:
        self.directory = local_path(directory, "directory")
        super().__init__(self.directory, every=every, only=only)
        self._hparams = mapping("hparams", hparams, '{"rate": 0.1}')
        self._histograms = whole_or_none("histograms", histograms, 1, "epochs")
        self._board: Any = None
        self._first: str | None = None
        self._shown_at: int | None = None
        self._resumed_with: Any = None
        imported("tensorboardX", "TensorBoard")

    def __repr__(self) -> str:
        return f"TensorBoard({str(self.directory)!r})"

    @property
    def run_folder(self) -> Path:
        """The folder of the events, in which the Trainer keeps `run.json`."""
        return self._at

    def open(self, start: Start) -> None:
        """Opens an event file; in a resumed run, TensorBoard drops events after the checkpoint."""
        if start.kind == "new":
            _set_aside(self._at)
        if start.kind != "resumed":
            self._begin_file()
            self._write_hparams({**flat(start.hyperparameters), **self._hparams})
            return
        # purge_step also drops the events at the step of the checkpoint: write these again.
        self._begin_file(purge_step=start.step)
        for row in start.newest:
            if row["step"] == start.step:
                self.write(row)
        if start.about.get("shown_at") == start.step and self._resumed_with is not None:
            self._write_arrays(_params(self._resumed_with), start.step)
        self._resumed_with = None

    def write(self, row: dict[str, Any]) -> None:
        """Writes each metric of a row as scalar, histogram or image."""
        suffix = _CURVES[row["span"]]
        metrics = metrics_in(row)
        for name, value in (as_numbers(metrics) | metrics).items():
            self._show(f"{row['mode']}{suffix}/{name}", value, row["step"])
        self._board.flush()

    def name_of(self, metric: str) -> str:
        """The name with letters, digits and `_-./` only; tensorboardX would change it silently."""
        return _REFUSED.sub("_", metric)

    def takes(self, value: Any) -> bool:
        """Whether the value is a number or an array of one to four axes."""
        return is_number(value) or 1 <= np.ndim(value) <= 4

    def close(self, error: BaseException | None) -> None:
        """Closes the event file."""
        self._board.close()

    def about(self) -> dict[str, Any]:
        """The folder, its first event file, and the step of the newest histograms."""
        if self._first is None or not (self._at / self._first).exists():
            self._first = next(iter(_events(self._at)), None)
        return {"directory": str(self.directory), "shown_at": self._shown_at, "first": self._first}

    def on_fit_start(self, record: Record) -> None:
        """Keeps the Experiment of a resumed run for its histograms."""
        super().on_fit_start(record)
        if record.mode == "train":
            self._shown_at = None
        is_resumed = record.mode == "train" and record.step > 0
        self._resumed_with = record.experiment if is_resumed and self._histograms else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Checks that the folder is that of the resumed run.

        Raises:
            ValueError: it has the events of another run.
        """
        super().load_state_dict(state)
        first, there = state["about"].get("first"), _events(self._at)
        if first in (None, *there):
            return
        was = state["about"]["directory"]
        if there:
            raise ValueError(
                f"{self!r} has the events of another run; the resumed one had written "
                f"{first} to {was!r}. Give TensorBoard that folder, or one without events"
            )
        warn(
            f"{self!r} has no events of the resumed run: those up to step {self._start.step:,} "
            f"will be missing. To keep them, restart with those of {was!r} in {self._at}",
            stacklevel=2,
        )

    def on_epoch_end(self, record: Record) -> None:
        """Logs the epoch, and every `histograms` epochs the params."""
        super().on_epoch_end(record)
        often = self._histograms
        if often and record.mode == "train" and (record.epoch + 1) % often == 0:
            self._submit(self._write_arrays, _params(record.experiment), record.step)
            self._shown_at = record.step

    def _begin_file(self, purge_step: int | None = None) -> None:
        """Opens an event file with a unique name: tensorboardX names files by the second only."""
        self._board = EventFile(self._at, f".{uuid.uuid4().hex[:8]}", purge_step)

    def _show(self, tag: str, value: Any, step: int) -> None:
        axes = np.ndim(value)
        summary = self._board.summary
        if axes == 0:
            self._board.add(summary.scalar(tag, float(value)), step)
        elif axes == 1:
            self._add_histogram(tag, _tree.to_numpy(value), step)
        else:
            form = {2: "HW", 3: "HWC", 4: "NHWC"}[axes]
            image = _as_image(_tree.to_numpy(value))
            self._board.add(summary.image(tag, image, dataformats=form), step)

    def _write_arrays(self, arrays: Mapping[str, Any], step: int) -> None:
        for path, array in arrays.items():
            self._add_histogram(f"params/{path}", array, step)
        self._board.flush()

    def _add_histogram(self, tag: str, array: np.ndarray[Any, Any], step: int) -> None:
        """Shows the finite values, because TensorBoard has no bins for others."""
        finite = array[np.isfinite(array)]
        if finite.size:
            self._board.add(self._board.summary.histogram(tag, finite, _BINS), step)

    def _write_hparams(self, given: Mapping[str, Any]) -> None:
        """Writes the hyper-parameters into this run; `add_hparams` would create another run."""
        if not given:
            return
        for part in self._board.summary.hparams(given, {}):
            self._board.add(part)


def _params(experiment: object) -> dict[str, Any]:
    """The floating-point params by path, as NumPy arrays of float32."""
    found = {
        path: leaf
        for path, leaf in _tree.leaves_by_slashes(params_of(experiment)).items()
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    read: Any = jax.device_get(found)  # one transfer
    return {path: np.asarray(leaf, np.float32) for path, leaf in read.items()}


def _set_aside(directory: Path) -> None:
    """Moves the events of an earlier run to a folder of another name."""
    events = _events(directory)
    if events:
        aside = free_name(directory)
        aside.mkdir()
        for name in events:
            (directory / name).rename(aside / name)


def _events(directory: Path) -> list[str]:
    """The names of the event files, oldest first, since a name starts with its time."""
    return sorted(path.name for path in directory.glob("events.out.tfevents.*"))


def _as_image(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The values scaled to [0, 1]; uint8 unchanged."""
    if value.dtype == np.uint8:
        return value
    value = np.nan_to_num(value.astype(np.float32))
    low, high = value.min(), value.max()
    return (value - low) / (high - low) if high > low else np.zeros_like(value)
