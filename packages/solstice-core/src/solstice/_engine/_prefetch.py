"""Prefetching: a thread that reads batches ahead, for slow data sets."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any

from solstice._batch import own
from solstice._types import Batch

_END = object()
_POLL = 0.1
"""Seconds after which a thread with a full queue checks whether it must end."""


def prefetched(batches: Iterator[Batch], count: int) -> Generator[Batch, None, None]:
    """Copies of the batches; a thread reads up to `count` ahead.

    An exception of the data set is raised here, with its traceback. The thread ends with the
    batches, or when this iterator is closed.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=count)
    closed = threading.Event()

    def put(item: Any) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=_POLL)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for batch in batches:  # copied, because the data set may overwrite a queued batch
                if not put((own(batch), None)):
                    return
            put((_END, None))
        except BaseException as error:  # raised again in the thread that trains
            put((_END, error))

    # A daemon, because a data set that never returns must not keep the process alive.
    thread = threading.Thread(target=read, name="solstice-prefetch", daemon=True)
    try:
        thread.start()  # inside `try`, because Ctrl-C may come while it starts
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is _END:
                return
            yield batch
    finally:
        batch = error = None  # because the frames of an error refer to this one
        closed.set()
        if thread.is_alive():  # with a timeout, because the thread may wait for the data set
            thread.join(timeout=2 * _POLL)
