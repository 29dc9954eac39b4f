"""The parts "A" to "E": time per step or epoch, over a scan and over a hand-written loop."""

import importlib
import random
import statistics
import time
from typing import Any

import tables
import workloads

CONTENDERS = [
    *["limit", "hand_written", "solstice_none", "solstice_default", "ready_none", "ready_default"],
    *["resident", "resident_default"],
]
TITLES = {**tables.EPOCHS, **tables.TRAINING, "limit": "the limit: one scan"}
MOST_ROUNDS = 15


def run(task: Any) -> None:
    workload = task.workload(task.name)
    table = tables.get(task.name)
    # All imports first: some change what JAX compiles for, and so compile the earlier ones again.
    makes = {name: module_of(table, name).make for name in CONTENDERS}
    found = {name: contender(task, workload, name, make) for name, make in makes.items()}
    runs = {name: run_epoch for name, run_epoch in found.items() if run_epoch is not None}
    seconds = in_turn(runs, workload, 1 if task.small else MOST_ROUNDS, task.deadline)
    for name in runs:
        per_unit = 1e3 * statistics.median(seconds[name]) / workload.units
        task.add(
            TITLES[name],
            contender=name,
            value=f"{per_unit:.3f} ms per {workload.unit}",
            limit=f"{ratio(seconds, name, 'limit')} x the limit",
            by_hand=f"{ratio(seconds, name, 'hand_written')} x by hand",
            seconds=seconds[name],
        )


def module_of(table: tables.Table, name: str) -> Any:
    module = f"epochs.{name}" if name.startswith("resident") else table.module(name)
    return importlib.import_module(f"contenders.{module}")


def contender(task: Any, workload: Any, name: str, make: Any) -> Any:
    """What runs an epoch, compiled and warm; None where it cannot run, which a row says."""
    began = time.monotonic()
    try:
        run_epoch = make(workload)
        run_epoch(workload.batches[:1])
        print(f"    {name}: first step after {time.monotonic() - began:.1f} s", flush=True)
        run_epoch(workload.batches)
    except workloads.NotHereError:
        task.add(TITLES[name], value="not in this version")
        return None
    return run_epoch


def in_turn(
    runs: dict[str, Any], workload: Any, rounds: int, deadline: float
) -> dict[str, list[float]]:
    """The seconds of each in rounds, in an order that is drawn, until the deadline."""
    luck = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in luck.sample(list(runs), len(runs)):
            began = time.perf_counter()
            runs[name](workload.batches)
            seconds[name].append(time.perf_counter() - began)
        if time.monotonic() > deadline:
            break
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, to: str) -> str:
    """The median ratio of two within each round."""
    pairs = zip(seconds[name], seconds[to], strict=True)
    return f"{statistics.median(mine / other for mine, other in pairs):.2f}"
