"""`python tests/benchmarks/run.py`: run the benchmark, write docs/benchmarks.md and .png.

The results of each workload are saved in docs/benchmarks/, so the page can be made of several runs.

Each contender runs in a process of its own. All are started and warmed up; then they train one
epoch each in turn, so that whatever slows the machine for a while slows all of them alike. That is
done with new processes several times over, since luck with memory stays with a process.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chart
import report
import tables
from results import Result, Results, load_accelerator, load_all, load_mesh

HERE = Path(__file__).parent
CACHE_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""JAX keeps each compiled program, however small."""


@dataclass(frozen=True)
class Counts:
    """How often to measure.

    Attributes:
        epochs: measured epochs of each process.
        processes: of each contender.
        more: further processes of those that are `close` in their table.
        more_epochs: measured epochs of each of those.
    """

    epochs: int
    processes: int
    more: int
    more_epochs: int


class Worker:
    """A process that trains one contender when it is told to."""

    def __init__(self, contender: str, workload: str, **environment: str) -> None:
        module = tables.get(workload).module(contender)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), module, workload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, **environment},
        )

    def read(self) -> dict[str, Any]:
        """The next answer; a RuntimeError with what the process wrote if it has died."""
        line = self._process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        raise RuntimeError(self._errors.read()[-2000:])

    def ask(self, command: str) -> dict[str, Any]:
        """`worker.ask("epoch")["seconds"]`."""
        with suppress(BrokenPipeError):  # `read` says why
            print(command, file=self._process.stdin, flush=True)
        return self.read()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def measure(workload: str, contenders: dict[str, str], counts: Counts) -> dict[str, Result]:
    """`measure("A", {"limit": "..."}, Counts(3, 3, 0, 0))["limit"].seconds`: run one workload."""
    results = {name: Result(title) for name, title in contenders.items()}
    close = tables.get(workload).close
    total = counts.processes + (counts.more if close else 0)
    for process in range(total):
        tell(f"{workload}: processes {process + 1} of {total}")
        all_run = process < counts.processes
        taking_part = {n: r for n, r in results.items() if not r.why and (all_run or n in close)}
        epochs = counts.epochs if all_run else counts.more_epochs
        measure_once(workload, taking_part, epochs, process)
    return results


def measure_start(workload: str, contenders: dict[str, str], processes: int) -> dict[str, Result]:
    """First steps of two processes, one after the other, with one compilation cache."""
    results = {name: Result(title) for name, title in contenders.items()}
    for process in range(processes):
        luck = random.Random(process)
        for name in luck.sample(list(results), len(results)):
            if not results[name].why:
                start_twice(workload, name, results[name])
                tell(f"start-{workload}: {name}, processes {process + 1} of {processes}")
    return results


def start_twice(workload: str, name: str, result: Result) -> None:
    """Adds the first steps of two processes of a contender."""
    with tempfile.TemporaryDirectory() as cache:
        for first_steps in (result.first_steps, result.again):
            worker = Worker(name, workload, JAX_COMPILATION_CACHE_DIR=cache, **CACHE_ALL)
            try:
                answer = worker.read()
            except RuntimeError as error:
                answer = {"ready": False, "why": "failed"}
                print(f"start-{workload} {name} FAILED\n{error}", file=sys.stderr)
            finally:
                worker.close()
            if not answer["ready"]:
                result.why = answer["why"]
                return
            first_steps.append(answer["first_step"])


def measure_once(workload: str, results: dict[str, Result], epochs: int, process: int) -> None:
    """Adds the results of one process for each contender.

    They start, and train in each round, in an order that is drawn: whoever comes after a contender
    that leaves the caches cold is another one each time.
    """
    luck = random.Random(process)
    contenders = luck.sample(list(results), len(results))
    workers: dict[str, Worker] = {}

    def attempt(name: str, command: str | None) -> dict[str, Any] | None:
        """The answer of a worker, or None when it cannot go on, which its result says."""
        try:
            answer = workers[name].ask(command) if command else workers[name].read()
        except RuntimeError as error:
            answer = {"ready": False, "why": "failed"}
            print(f"{workload} {name} FAILED\n{error}", file=sys.stderr)
        if answer.get("ready") is not False:
            return answer
        results[name].why = answer["why"]
        workers.pop(name).close()
        return None

    try:
        for name in contenders:
            workers[name] = Worker(name, workload)
            answer = attempt(name, None)
            if answer is not None:
                results[name].first_steps.append(answer["first_step"])
            tell(f"{workload}: {name} {results[name].why or 'is ready'}")
        for epoch in range(epochs + 1):
            for name in luck.sample(list(workers), len(workers)):
                answer = attempt(name, "epoch")
                if answer is not None and epoch > 0:  # the first warms up
                    results[name].seconds[process, epoch] = answer["seconds"]
                    results[name].loss = answer.get("loss")
            tell(f"{workload}: epoch {epoch} of {epochs}" + (" (warm-up)" if epoch == 0 else ""))
        for name in list(workers):
            answer = attempt(name, "end")
            if answer is not None and answer["peak"] is not None:
                results[name].peaks.append(answer["peak"])
    finally:
        for worker in workers.values():
            worker.close()


def tell(text: str) -> None:
    """Says how far the run is."""
    print(f"[{time.perf_counter() - START:4.0f} s] {text}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    choices = [*tables.ORDER, "start"]
    names = list(dict.fromkeys(n for table in tables.TABLES.values() for n in table.contenders))
    parser.add_argument(
        "--workloads", nargs="+", metavar="NAME", choices=choices, default=choices,
        help=f"of {', '.join(choices)}; all by default",
    )  # fmt: skip
    parser.add_argument(
        "--contenders", nargs="+", metavar="NAME", choices=names, default=names,
        help=f"of {', '.join(names)}; all by default; the limit and the hand-written loop always "
        "run",
    )  # fmt: skip
    parser.add_argument(
        "--with-torch", action="store_true", help="install PyTorch too (by `nox -s bench`)"
    )
    parser.add_argument(
        "--with-tensorflow", action="store_true",
        help="install TensorFlow too, for tf.data (by `nox -s bench`)",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=int, default=3, help="measured epochs of each process; 3 by default"
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="processes of each contender; 2 by default"
    )
    parser.add_argument(
        "--more", type=int, default=3, metavar="PROCESSES",
        help="further processes of those between which hundredths count; 3 by default",
    )  # fmt: skip
    parser.add_argument(
        "--more-epochs", type=int, default=12, metavar="EPOCHS",
        help="measured epochs of each of those; 12 by default",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="one epoch of one process each, to try the benchmark; its page goes to a folder of "
        "its own",
    )  # fmt: skip
    parser.add_argument(
        "--page", action="store_true", help="measure nothing: write the page from saved results"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="where benchmarks.md, benchmarks.png and benchmarks/NAME.json go; docs/ by default",
    )  # fmt: skip
    options = parser.parse_args()
    if min(options.epochs, options.processes, options.more_epochs) < 1:
        parser.error("--epochs, --processes and --more-epochs must be 1 or more")
    if options.more < 0:
        parser.error("--more must be 0 or more")
    if options.out is None:
        quick = Path(tempfile.gettempdir()) / "solstice-bench-quick"
        options.out = quick if options.quick else HERE.parents[1] / "docs"
    return options


def measure_all(options: argparse.Namespace) -> bool:
    """Measures what is asked for, and saves each workload when it is done; whether all ran."""
    counts = Counts(options.epochs, options.processes, options.more, options.more_epochs)
    if options.quick:
        counts = Counts(1, 1, 0, 1)
    command = " ".join(["nox -s bench", *(["--", *sys.argv[1:]] if sys.argv[1:] else [])])
    complete = True

    def save(name: str, found: dict[str, Result]) -> None:
        nonlocal complete
        Results(name, found, command).save(options.out / "benchmarks")
        complete &= all(result.why != "failed" for result in found.values())

    for name in tables.ORDER:
        table = tables.TABLES[name]
        wanted = {*options.contenders, *table.always}
        contenders = {n: title for n, title in table.contenders.items() if n in wanted}
        for workload in table.workloads if name in options.workloads else []:
            save(workload, measure(workload, contenders, counts))
    for workload in tables.START_WORKLOADS if "start" in options.workloads else []:
        contenders = {n: title for n, title in tables.START.items() if n in options.contenders}
        save(f"start-{workload}", measure_start(workload, contenders, counts.processes))
    return complete


def main() -> int:
    options = parse()
    complete = options.page or measure_all(options)
    folder = options.out / "benchmarks"
    try:
        found = load_all(folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    page = report.page(found, load_accelerator(folder), load_mesh(folder))
    (options.out / "benchmarks.md").write_text(page)
    chart.draw(options.out / "benchmarks.md", options.out / "benchmarks.png")
    tell(f"wrote benchmarks.md and benchmarks.png into {options.out}")
    return int(not complete)


START = time.perf_counter()

if __name__ == "__main__":
    sys.exit(main())
