"""Processes that save together: results and errors reach all, and who is missing is named."""

import os
import re
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from solstice.checkpoint import CheckpointError, Peers, _peers


def test_one_process_does_all_itself():
    peers = Peers("a test is run")
    assert peers.is_alone
    assert peers.is_first
    assert peers.together(lambda: 3) == [3]
    assert peers.each(object) is not None
    assert peers.first(lambda: {1}) == {1}  # not through JSON
    peers.check_same({"a": "b"})
    with pytest.raises(ZeroDivisionError):
        peers.first(lambda: 1 / 0)


def one_of_two(index: int) -> None:
    results()
    errors(index)
    in_threads(index)
    missing(index)


def results() -> None:
    peers = Peers("a test is run")
    assert peers.together(jax.process_index) == [0, 1]
    assert peers.first(jax.process_index) == 0
    assert peers.each(lambda: {jax.process_index()}) == {jax.process_index()}
    peers.check_same({"a": "b"})


def errors(index: int) -> None:
    for who in (0, 1):
        for kind, text in ((ValueError, "no"), (KeyboardInterrupt, "end")):

            def fail(kind: type[BaseException] = kind, text: str = text, who: int = who) -> None:
                if index == who:
                    raise kind(text)

            words = f"a test is run failed in process {who}: {kind.__name__}: {text}"
            expected = kind if index == who else CheckpointError
            with pytest.raises(expected, match=text if index == who else re.escape(words)):
                Peers("a test is run").together(fail)
    with pytest.raises(CheckpointError, match=r"`\.w` differs: it is 0 in process 0, and 1 in"):
        Peers("a test is run").check_same({"a": "b", "`.w`": str(index)})
    with pytest.raises(CheckpointError, match="`c` differs: it is missing in process 0, and x"):
        Peers("a test is run").check_same({"`c`": "x"} if index else {})


def in_threads(index: int) -> None:
    """Which of several talks first does not matter."""
    several = [Peers(f"talk {n}") for n in range(4)]
    found: dict[int, list[list[int]]] = {}

    def talk(n: int) -> None:
        found[n] = [several[n].together(lambda i=i: 10 * n + i) for i in range(5)]

    threads = [threading.Thread(target=talk, args=(n,)) for n in range(4)]
    for thread in threads[:: 1 if index else -1]:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [[10 * n + i] * 2 for i in range(5)] for n in range(4)}


def missing(index: int) -> None:
    _peers.TIMEOUT = 1.0
    peers = Peers("a test is run")
    if index == 0:
        with pytest.raises(CheckpointError, match="process 1 did not come within 1 s"):
            peers.together(lambda: None)
    else:
        time.sleep(1.5)  # the other waits for one
        with pytest.raises(CheckpointError, match="process 1 did not come within 1 s"):
            peers.together(lambda: None)


@pytest.mark.slow
def test_two_processes_talk():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-W", "error", __file__, address]
    both = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i in (0, 1)
    ]
    printed = [process.communicate(timeout=120)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(printed)[-3000:]


if __name__ == "__main__":
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    try:
        one_of_two(int(sys.argv[2]))
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)  # at a normal exit, it would wait for the other process
