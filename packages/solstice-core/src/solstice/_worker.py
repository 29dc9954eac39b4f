"""Worker: a thread that writes to a disk or a tool while training continues."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Worker:
    """`worker = Worker("solstice-logger")`, `worker.submit(write, row)`: run tasks in order.

    The thread starts with the first task. An exception of a task is raised by a later `submit`,
    `wait` or `close`.

    Args:
        name: prefix of the name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: deque[Future[object]] = deque()

    def submit(self, task: Callable[..., object], *arguments: object) -> None:
        """`worker.submit(write, row)`: call `write(row)` in the thread, after the tasks before."""
        # Done tasks are taken off here, else a run of many rows would hold a Future for each.
        while self._tasks and self._tasks[0].done():
            self._tasks.popleft().result()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._tasks.append(self._thread.submit(task, *arguments))

    def wait(self) -> None:
        """Waits for all tasks, and raises the exception of the first that failed."""
        while self._tasks:
            self._tasks.popleft().result()

    def close(self) -> None:
        """Like `wait`, and ends the thread even if a task failed."""
        try:
            self.wait()
        finally:
            self._tasks.clear()
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None
