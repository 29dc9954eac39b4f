"""`nox -s bench_error_bars`: what error bars add to the time of an evaluation.

The ready-made classifier of workload B is evaluated without and with `confidence=0.95` in turn:
1,000 replicates of all its metrics, also accuracy and macro F1. The ratio of two such evaluations
compares them within one round; the median of the rounds is shown, and the time of each per step.
CPU time is that of all threads, which other load on the machine changes less.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import workloads
from models import ready

import solstice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workloads", nargs="*", default=["B32", "B128"])
    options = parser.parse_args()
    print(f"{'':8}{'without':>12}{'with':>12}{'ratio':>10}{'ratio of CPU time':>20}")
    for name in options.workloads:
        times = measured(workloads.get(name), options.rounds)
        without, bars = times[False], times[True]
        ratios = [
            statistics.median(b[clock] / a[clock] for a, b in zip(without, bars, strict=True))
            for clock in (0, 1)
        ]
        steps = [1e6 * statistics.median(wall for wall, _ in rows) for rows in (without, bars)]
        print(f"{name:8}{steps[0]:9.0f} us{steps[1]:9.0f} us{ratios[0]:10.2f}{ratios[1]:20.2f}")


def measured(workload: workloads.Workload, rounds: int) -> dict[bool, list[tuple[float, float]]]:
    """Seconds per step of each evaluation, and of CPU time, without and with error bars."""
    trainer, batches = solstice.Trainer(), workload.batches
    experiment = ready.build(workload).setup(batches[0])
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for index in range(rounds + 1):
        for bars in found:
            confidence = 0.95 if bars else None
            seconds = timed(lambda c=confidence: trainer.test(experiment, batches, confidence=c))
            if index:  # the first round compiles
                found[bars].append((seconds[0] / len(batches), seconds[1] / len(batches)))
    return found


def timed(run: Callable[[], object]) -> tuple[float, float]:
    began = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began[0], time.process_time() - began[1]


if __name__ == "__main__":
    main()
