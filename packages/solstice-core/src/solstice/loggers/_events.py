"""EventFile: an event file of TensorBoard, written at once.

The writer of tensorboardX has a queue and a thread, and its `flush` does not wait for them, so only
a closed file would be on disk when a checkpoint is saved. Here a run has one file.
"""

import importlib
import time
from pathlib import Path
from typing import Any


class EventFile:
    """`EventFile(folder, ".suffix")`: a new event file in a folder.

    Args:
        folder: the folder, which is made.
        suffix: the end of the name, which must be unique.
        purge_step: TensorBoard drops the events of older files from this step on.

    Attributes:
        summary: the module of tensorboardX that makes summaries.
    """

    def __init__(self, folder: Path, suffix: str, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.summary: Any = importlib.import_module("tensorboardX.summary")
        self._protos: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        writers: Any = importlib.import_module("tensorboardX.event_file_writer")
        self._file = writers.EventsWriter(str(folder / "events"), suffix)
        if purge_step is not None:
            start = self._protos.SessionLog(status=self._protos.SessionLog.START)
            self._write(session_log=start, step=purge_step)

    def add(self, summary: Any, step: int | None = None) -> None:
        """Writes a summary."""
        self._write(summary=summary, **({} if step is None else {"step": step}))

    def flush(self) -> None:
        """Returns when all is on disk."""
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._file.write_event(self._protos.Event(wall_time=time.time(), **fields))
