"""`nox -s bench_agreement`: what the agreement before a block costs, by the number of processes.

All processes are on this machine, connected over loopback: the first holds the service, and two
train a small network between rounds. A round is measured from the arrival of the last process until
the last one has the answer, so waiting for a slow process does not count. "reads all" is for
comparison: each process reads the word of each other one. The model is a line through the medians
(Linux).
"""

import argparse
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from solstice import _service, distributed
from solstice._agreement import Agreement, Word, agreement

WARM = 10
"""Rounds that do not count."""

BEYOND = (1024, 8192)
"""Numbers of processes for which the model is asked."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 8, 64, 256])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--reads-all-up-to", type=int, default=64, help="processes")
    parser.add_argument("--words", type=int, nargs="+", default=BEYOND, help="of the lead alone")
    options = parser.parse_args()
    print("ms per round: median and 90th percentile; CPU of the first process and of each other")
    print(f"{'':12}{'processes':>10}{'median':>10}{'90 %':>10}{'CPU first':>12}{'CPU other':>12}")
    for by_hand in (False, True):
        counts = [n for n in options.processes if not by_hand or n <= options.reads_all_up_to]
        rows = [measure(count, options.rounds, by_hand=by_hand) for count in counts]
        if not by_hand:
            show_models(counts, rows)
            for count in options.words:
                show_lead(count)


def show_lead(count: int, rounds: int = 5) -> None:
    """The round of the lead alone, with the words of all `count` processes there."""
    if fork():
        assert os.wait()[1] == 0
        return
    distributed.initialize(f"127.0.0.1:{free_port()}", 1, 0)
    client, took = _service.client(), []
    assert client is not None
    together = Agreement(_service.Service(client), 0, count)
    for number in range(rounds):
        word, folder = Word(32, phase=f"train epoch 1 call {number}"), f"solstice/{number}"
        said = f'["said","block {word.phase!r}",[32,"",null,0,""]]'
        for process in range(1, count):
            client.key_value_set(f"{folder}/{process}", said)
        start = time.monotonic()
        assert together.agree(word).most_batches == 32
        took.append(time.monotonic() - start)
    print(f"  the lead alone, with the words of {count:,}: {np.median(took) * 1e3:.1f} ms")
    os._exit(0)


def measure(count: int, rounds: int, *, by_hand: bool) -> tuple[float, float, float, float]:
    """Median, 90th percentile, CPU of the first process and mean CPU of the others, in ms."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        children = []
        for process in range(count):
            child = fork()
            if child == 0:
                run_process(process, count, port, Path(folder), rounds, by_hand=by_hand)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert not any(codes), codes
        files = [np.load(f"{folder}/{process}.npz") for process in range(count)]
    start = np.max([file["start"] for file in files], axis=0)
    end = np.max([file["end"] for file in files], axis=0)
    took = (end - start)[WARM:] * 1e3
    first, *others = (float(file["cpu"]) * 1e3 / len(took) for file in files)
    row = float(np.median(took)), float(np.quantile(took, 0.9)), first, float(np.mean(others))
    name = "reads all" if by_hand else "Agreement"
    cells = f"{row[0]:10.2f}{row[1]:10.2f}{row[2]:12.2f}{row[3]:12.2f}"
    print(f"{name:12}{count:10}{cells}", flush=True)
    return row


def fork() -> int:
    """A process that has imported everything; JAX has no threads yet, though it warns of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def run_process(
    process: int, count: int, port: int, folder: Path, rounds: int, *, by_hand: bool
) -> None:
    """One process: trains or not, agrees, and writes when each round began and ended."""
    distributed.initialize(f"127.0.0.1:{port}", count, process, timeout=300)
    together = agreement()
    assert together is not None
    train = trains() if process < 2 else lambda: None
    agree = reads_all(process, count) if by_hand else agrees(together)
    start, end, cpu = np.zeros(rounds + WARM), np.zeros(rounds + WARM), 0.0
    for number in range(rounds + WARM):
        train()
        before = time.process_time()
        start[number] = time.monotonic()
        agree(number)
        end[number] = time.monotonic()
        cpu += (time.process_time() - before) * (number >= WARM)
    np.savez(folder / f"{process}.npz", start=start, end=end, cpu=cpu)
    together.barrier("the end")
    jax.distributed.shutdown()
    os._exit(0)


def trains() -> Callable[[], object]:
    """A block of work, some 10 ms on a core: steps of a small network.

    They are of NumPy, because JAX would find its devices, which takes all processes.
    """
    x = np.ones((64, 128), np.float32)

    def steps() -> None:
        w = np.full((128, 128), 1 / 128, np.float32)
        for _ in range(32):
            y = np.tanh(x @ w)
            w -= 1e-3 * (x.T @ (y * (1 - y**2)))

    return steps


def agrees(together: Agreement) -> Callable[[int], object]:
    return lambda number: together.agree(Word(32, phase=f"train epoch 1 call {number}"))


def reads_all(process: int, count: int) -> Callable[[int], None]:
    client = _service.client()
    assert client is not None

    def agree(number: int) -> None:
        client.key_value_set(f"words/{number}/{process}", '[32,"",null,0]')
        for other in range(count):
            client.blocking_key_value_get(f"words/{number}/{other}", 60_000)
        if number > 1:
            client.key_value_delete(f"words/{number - 2}/{process}")

    return agree


def show_models(counts: list[int], rows: list[tuple[float, float, float, float]]) -> None:
    """Lines through the medians, and through the CPU time of the first process."""
    for name, column in (("a round", 0), ("CPU first", 2)):
        # Relative errors count, else the largest number of processes alone would decide.
        values = np.array([row[column] for row in rows])
        each, fixed = np.polyfit(counts, values, 1, w=1 / values)
        beyond = ", ".join(f"{n:,}: {fixed + each * n:,.0f} ms" for n in BEYOND)
        print(f"  model of {name}: {fixed:.2f} ms + {each * 1e3:.1f} us a process; {beyond}")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    main()
