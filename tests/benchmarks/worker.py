"""`python worker.py CONTENDER WORKLOAD [STEPS]`: one contender in a process of its own.

It answers on standard output, a line of JSON each: first {"ready": true, "first_step": seconds},
or {"ready": false, "why": text} where a library is not installed; to each line "epoch" on standard
input {"seconds", "loss", "accuracy"}; to "end" {"peak": bytes}, or null where that is not known.
CONTENDER is a module of contenders/, as in "limit" or "epochs.limit".
"""

import importlib
import json
import os
import sys
import time
from typing import Any

import jax
import workloads


def main(contender: str, name: str, steps: int | None) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    def not_here(error: Exception) -> None:
        name = getattr(error, "name", None)
        answer(ready=False, why=f"{name} is not installed" if name else str(error))

    try:
        make = importlib.import_module(f"contenders.{contender}").make
    except ModuleNotFoundError as error:
        not_here(error)
        return
    workload = workloads.get(name, steps)
    jax.devices()  # to start JAX is part of the imports
    reset_peak()
    before = memory("VmRSS")

    start = time.perf_counter()
    try:
        run_epoch = make(workload)
        run_epoch(workload.batches[:1])
    except (ModuleNotFoundError, workloads.NotHereError) as error:
        not_here(error)
        return
    answer(ready=True, first_step=time.perf_counter() - start)

    for line in sys.stdin:
        if line.strip() == "end":
            break
        start = time.perf_counter()
        metrics = run_epoch(workload.batches)
        answer(**{"seconds": time.perf_counter() - start, **metrics})
    peak = memory("VmHWM")
    answer(peak=None if peak is None or before is None else peak - before)


def memory(name: str) -> int | None:
    """`memory("VmHWM")`: bytes, as Linux tells: VmRSS now, VmHWM at the most."""
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return None


def reset_peak() -> None:
    """Forgets what the imports and the data have needed at the most, where Linux can."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
