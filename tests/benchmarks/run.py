"""`python tests/benchmarks/run.py`: run the benchmark, write docs/benchmarks.md and .png.

Each contender runs in a process of its own. All are started and warmed up; then they train one
epoch each in turn, so that whatever slows the machine for a while slows all of them alike. That is
done with new processes several times over, since luck with memory stays with a process.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chart
import report
import workloads

HERE = Path(__file__).parent

CONTENDERS = {
    "limit": "the limit: one scan of the epoch",
    "hand_fused": "hand-fused blocks of 32",
    "hand_written": "hand-written loop, donated",
    "usual_loop": "usual loop, `float(loss)`",
    "keras_1": "Keras 3",
    "keras_32": "Keras 3, `steps_per_execution=32`",
    "linen": "Flax Linen",
    "nnx": "Flax NNX",
    "torch_1": "PyTorch, one thread",
    "torch_2": "PyTorch, two threads",
    "lightning": "Lightning",
    "solstice_default": "Solstice, default callbacks",
    "solstice_none": "Solstice, no callbacks",
    "solstice_per_step": "Solstice, a per-step callback",
    "solstice_within": "Solstice, no callbacks, within one fit",
}
LEAF_CONTENDERS = {
    "limit": CONTENDERS["limit"],
    "hand_fused": CONTENDERS["hand_fused"],
    "hand_fused_ready": "hand-fused blocks, stacked beforehand",
    "hand_written": CONTENDERS["hand_written"],
    "filter_jit": "`eqx.filter_jit`",
    "nnx_jit": "`nnx.jit`",
    "solstice_none": CONTENDERS["solstice_none"],
    "solstice_within": CONTENDERS["solstice_within"],
    "solstice_ready": "Solstice's engine, blocks filled beforehand",
}
ALWAYS = ["limit", "hand_written"]
CLOSE = {
    "train": [*ALWAYS, "solstice_default", "solstice_none"],
    "cnn": ["hand_written", "solstice_default", "solstice_none"],  # its limit is none, and slow
    "leaves": [*ALWAYS, "solstice_ready"],
}
"""Those between which a few hundredths count, by kind of workload ("train" for all others): further
processes make their medians more certain."""


@dataclass(frozen=True)
class Counts:
    """How often to measure.

    Attributes:
        epochs: measured epochs of each process.
        processes: of each contender.
        more: further processes of `CLOSE`.
        more_epochs: measured epochs of each of those.
    """

    epochs: int
    processes: int
    more: int
    more_epochs: int


@dataclass
class Result:
    """What one contender did in one workload.

    Attributes:
        title: the contender in words.
        why: why it did not run, or "".
        first_steps: seconds from nothing, after the imports, to the first trained step, of each
            process.
        seconds: of each epoch, by process and round.
        peaks: bytes of memory above those after the imports and the data, of each process that
            can tell.
        loss: of the last epoch.
    """

    title: str
    why: str = ""
    first_steps: list[float] = field(default_factory=list)
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)
    peaks: list[int] = field(default_factory=list)
    loss: float = 0.0

    @property
    def first_step(self) -> float:
        return statistics.median(self.first_steps)

    @property
    def peak(self) -> float | None:
        return statistics.median(self.peaks) if self.peaks else None


class Worker:
    """A process that trains one contender when it is told to."""

    def __init__(self, contender: str, workload: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), contender, workload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},
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
        with suppress(BrokenPipeError):  # `read` tells why
            print(command, file=self._process.stdin, flush=True)
        return self.read()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def measure(workload: str, contenders: dict[str, str], counts: Counts) -> dict[str, Result]:
    """`measure("A", {"limit": "..."}, Counts(3, 3, 0, 0))["limit"].seconds`: run one workload."""
    results = {name: Result(title) for name, title in contenders.items()}
    close = CLOSE.get(workloads.get(workload, 1).kind, CLOSE["train"])
    total = counts.processes + counts.more
    for process in range(total):
        tell(f"{workload}: processes {process + 1} of {total}")
        all_run = process < counts.processes
        taking_part = {n: r for n, r in results.items() if not r.why and (all_run or n in close)}
        epochs = counts.epochs if all_run else counts.more_epochs
        measure_once(workload, taking_part, epochs, process)
    return results


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
                    results[name].loss = answer["loss"]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    choices = [*workloads.NAMES, "leaves"]
    names = list(dict.fromkeys([*CONTENDERS, *LEAF_CONTENDERS]))
    parser.add_argument(
        "--workloads", nargs="+", metavar="NAME", choices=choices, default=choices,
        help=f"of {', '.join(choices)}; all by default",
    )  # fmt: skip
    parser.add_argument(
        "--contenders", nargs="+", metavar="NAME", choices=names, default=names,
        help=f"of {', '.join(names)}; all by default; {' and '.join(ALWAYS)} always run",
    )  # fmt: skip
    parser.add_argument(
        "--with-torch", action="store_true", help="tells `nox -s bench` to install PyTorch"
    )
    parser.add_argument(
        "--epochs", type=int, default=3, help="measured epochs of each process; 3 by default"
    )
    parser.add_argument(
        "--processes", type=int, default=3, help="processes of each contender; 3 by default"
    )
    parser.add_argument(
        "--more", type=int, default=4, metavar="PROCESSES",
        help="further processes of those between which hundredths count; 4 by default",
    )  # fmt: skip
    parser.add_argument(
        "--more-epochs", type=int, default=12, metavar="EPOCHS",
        help="measured epochs of each of those; 12 by default",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=HERE.parents[1] / "docs", metavar="FOLDER",
        help="where benchmarks.md and benchmarks.png go; docs/ by default",
    )  # fmt: skip
    options = parser.parse_args()
    if min(options.epochs, options.processes, options.more_epochs) < 1:
        parser.error("--epochs, --processes and --more-epochs must be 1 or more")
    if options.more < 0:
        parser.error("--more must be 0 or more")
    counts = Counts(options.epochs, options.processes, options.more, options.more_epochs)

    def chosen(contenders: dict[str, str]) -> dict[str, str]:
        return {n: t for n, t in contenders.items() if n in ALWAYS or n in options.contenders}

    training = {
        name: measure(name, chosen(CONTENDERS), counts)
        for name in options.workloads
        if name != "leaves"
    }
    leaves = {}
    if "leaves" in options.workloads:
        leaves = {name: measure(name, chosen(LEAF_CONTENDERS), counts) for name in workloads.LEAVES}
    options.out.mkdir(parents=True, exist_ok=True)
    command = " ".join(["nox -s bench", *(["--", *sys.argv[1:]] if sys.argv[1:] else [])])
    page = report.page(training, leaves, command, counts)
    (options.out / "benchmarks.md").write_text(page)
    chart.draw(options.out / "benchmarks.md", options.out / "benchmarks.png")
    tell(f"wrote benchmarks.md and benchmarks.png into {options.out}")
    everything = [*training.values(), *leaves.values()]
    return int(any(r.why == "failed" for results in everything for r in results.values()))


START = time.perf_counter()

if __name__ == "__main__":
    sys.exit(main())
