"""Trace: writes a digest of each array of each step, to hold two runs against each other."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax

from solstice._arguments import whole
from solstice._callback import Callback
from solstice._console import warn
from solstice._digests import Digests
from solstice._paths import check_folder, local_path
from solstice._record import Record
from solstice._schema import read
from solstice._traces import FOLDER, TraceWriter


@dataclass(frozen=True)
class _State:
    step: int


class Trace(Callback):
    """`Trace("runs/a")`: record the bits of each step, for `solstice.diff("runs/a", "runs/b")`.

    ```python
    trainer = solstice.Trainer([Checkpoint("runs/a"), Trace("runs/a")])
    exp = trainer.fit(exp, train_ds, num_epochs=10)
    print(solstice.diff("runs/a", "runs/b"))
    ```

    The compiled step computes a 32-bit digest of each array: of the batch and the outputs at each
    step, and of the Experiment (parameters, optimizer state, model state, keys) at each `every`-th
    one. They go to `runs/a/trace`, 4 bytes each. The trained numbers stay the same. A run that is
    resumed continues the trace after the step of its checkpoint.

    The cost is the time to read the Experiment's arrays once. With a small batch, a step takes
    little longer than that: then choose a larger `every`.

    Args:
        directory: the folder of the run, on a local disk. A new run renames the trace of an earlier
            one, such as to `trace-1`. A relative path is resolved at the start of a run.
        every: the steps between two digests of the Experiment.

    Raises:
        ValueError: `every` is not a whole number of 1 or more, or `directory` is a URL.
        CheckpointError: when a run is resumed, the trace in the folder is that of another one.
    """

    modes = ("train",)
    needs = ("digests",)
    can_stop = False
    waits_for_device = False
    has_side_effects = True

    def __init__(self, directory: str | PathLike[str], *, every: int = 1) -> None:
        self.directory = local_path(directory, "directory")
        self.every = self._every = whole("every", every, 1, "steps")
        self._at = self.directory
        self._saved_at: int | None = None
        self._record: Record | None = None
        self._writer: TraceWriter | None = None
        self._newest: Digests | None = None

    def __repr__(self) -> str:
        return f"Trace({str(self.directory)!r})"

    @property
    def run_folder(self) -> Path:
        """The folder of the run, in which the Trainer keeps `run.json`."""
        return self._at

    def on_fit_start(self, record: Record) -> None:
        """Checks that the folder can be written."""
        self._close()
        self._at, self._saved_at = self.directory.absolute(), None
        check_folder(self._at, repr(self))

    def on_epoch_start(self, record: Record) -> None:
        """Opens the trace before the first step, and notes the epoch."""
        if self._record is None:
            # The field gives the digests of the newest moment, also to `state_dict`.
            self._record = record
            start = record.digests  # in all processes, because the devices of all compute it
            if jax.process_index() == 0:
                self._open(record.step, start)
        if self._writer is not None:
            self._writer.add_epoch(record.epoch, record.step - record.epoch_step)

    def _open(self, step: int, start: Digests) -> None:
        self._writer = TraceWriter(self._at / FOLDER, step, self._every, start)
        if self._saved_at and not self._writer.continues:
            warn(
                f"{self!r} has no trace that ends at step {step:,}, where the run continues: steps "
                f"before it are missing. To keep them, restart with the folder {FOLDER!r} of the "
                f"run at {self._at}",
                stacklevel=2,
            )

    def on_call_end(self, record: Record) -> None:
        """Writes the digests of the call before, while the device works on this one."""
        if not record.interrupted:  # else `on_exception` follows
            before, self._newest = self._newest, record.digests
            self._write(before)

    def on_epoch_end(self, record: Record) -> None:
        """Writes the digests up to this step."""
        self._write_all()

    def on_fit_end(self, record: Record) -> None:
        """Closes the trace."""
        self._write_all()
        self._close()

    def on_exception(self, record: Record, error: BaseException) -> None:
        """Writes the digests up to the failing step, and closes the trace."""
        try:
            self._write_all()
        finally:
            self._close()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps that are written; those up to this moment are, before it returns."""
        self._write_all()
        return {"step": 0 if self._writer is None else self._writer.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Notes that the saved run had a trace."""
        self._saved_at = read(_State, state, "Trace.state_dict()").step

    def _write_all(self) -> None:
        newest, self._newest = self._newest, None
        self._write(newest)
        if self._record is not None:
            self._write(self._record.digests)

    def _write(self, digests: Digests | None) -> None:
        if self._writer is not None and digests is not None:
            self._writer.add(digests)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        self._record = self._newest = None  # they refer to the run
        if writer is not None:
            writer.close()
