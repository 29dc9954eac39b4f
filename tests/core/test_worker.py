"""Worker: tasks run one after the other in a thread, and their exceptions reach the caller."""

import threading

import pytest

from solstice._worker import Worker


def fails(number: int) -> None:
    raise ValueError(number)


def test_tasks_run_in_order_in_one_other_thread():
    done: list[tuple[int, str]] = []
    worker = Worker("a-worker")
    for number in range(50):
        worker.submit(lambda n: done.append((n, threading.current_thread().name)), number)
    worker.wait()
    assert [number for number, _ in done] == list(range(50))
    assert {name for _, name in done} == {"a-worker_0"}
    worker.close()


@pytest.mark.parametrize("call", ["wait", "close"])
def test_the_first_exception_is_raised_once_and_the_other_tasks_still_run(call: str):
    done: list[int] = []
    started = threading.Event()
    worker = Worker("a-worker")
    worker.submit(started.wait)  # holds the tasks back, so that `submit` finds none of them done
    worker.submit(fails, 1)
    worker.submit(fails, 2)
    worker.submit(done.append, 3)
    started.set()
    with pytest.raises(ValueError, match="1"):
        getattr(worker, call)()
    if call == "wait":
        with pytest.raises(ValueError, match="2"):
            worker.wait()
    worker.close()
    assert done == [3]


def test_submit_raises_the_exception_of_a_task_that_is_done():
    worker = Worker("a-worker")
    worker.submit(fails, 1)
    worker._tasks[0].exception()  # waits, and does not raise
    with pytest.raises(ValueError, match="1"):
        worker.submit(print)
    worker.close()


def test_a_closed_worker_starts_again_and_leaves_no_thread():
    before = threading.active_count()
    done: list[int] = []
    worker = Worker("a-worker")
    for number in range(3):
        worker.submit(done.append, number)
        worker.close()
        assert threading.active_count() == before
    assert done == [0, 1, 2]
