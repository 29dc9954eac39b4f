"""The contenders do the same work: all end a workload with the same loss."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
READY = ["ready_default", "ready_none"]
BY_HAND = ["hand_written", "solstice_default", "solstice_none"]
FUSED = ["hand_fused", "hand_fused_ready", "solstice_ready"]
KERAS = ["keras_1", "keras_32"]
CASES = {
    "A": (
        64,
        [
            *FUSED,
            *BY_HAND,
            "usual_loop",
            *READY,
            *KERAS,
            "linen",
            "nnx",
            "solstice_per_step",
        ],
    ),
    "D": (2, ["hand_written", "ready_none"]),
    "E": (47, [*BY_HAND, *READY, "keras_1", "keras_47", "resident", "resident_default"]),
    "evaluation": (10, [*BY_HAND, *READY, *KERAS]),
    "prediction": (10, ["hand_written", "solstice_none", "ready_none", *KERAS]),
    "population-E": (10, ["fits", "population", "fits_default", "population_default"]),
    "reading-python": (10, ["train", "fit", "fit_prefetch"]),
    "reading-grain": (10, ["train", "fit", "fit_prefetch"]),
}
"""Steps of an epoch, and who does them, for workloads that every contender shares."""

OWN = ("reading", "population")
"""Workloads whose first contender does the work that the others are compared with."""

LIBRARIES = {"keras", "flax", "grain", None}
"""What may not be installed, or is not in this version (None)."""

EPOCHS = """
import importlib, json, sys, tables, workloads

answers, workload = {}, workloads.get(sys.argv[1], int(sys.argv[2]))
table = tables.get(workload.name)
for name in sys.argv[3:]:
    try:
        run_epoch = importlib.import_module(f"contenders.{table.module(name)}").make(workload)
        run_epoch(workload.batches[:1])
        answers[name] = run_epoch(workload.batches)
    except ModuleNotFoundError as error:
        answers[name] = error.name
    except workloads.NotHereError:
        answers[name] = None
print("\\n" + json.dumps(answers))
"""


def answer_of(*command, **options):
    """What a process of the benchmarks prints, a line each."""
    pytest.importorskip("optax")
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=env, **options
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.parametrize("workload", CASES)
def test_every_contender_ends_with_the_loss_of_the_first(workload):
    """All in one process, which imports JAX once."""
    steps, names = CASES[workload]
    first, *others = names if workload.partition("-")[0] in OWN else ["limit", *names]
    found = answer_of("-c", EPOCHS, workload, str(steps), first, *others)[-1]
    missing = {name: why for name, why in found.items() if not isinstance(why, dict)}
    assert set(missing.values()) <= LIBRARIES
    if first in missing:
        pytest.skip(f"{missing[first]} is not installed")
    for name in set(others) - set(missing):
        for key, value in found[first].items():
            tolerance = 2e-3 if "accuracy" in key or key.startswith("val_") else 1e-4
            assert found[name][key] == pytest.approx(value, abs=tolerance), (name, key)


@pytest.mark.slow
def test_a_worker_answers_as_the_benchmark_asks_it():
    worker = [str(HERE / "worker.py"), "limit", "A", "4"]
    ready, epoch, end = answer_of(*worker, input="epoch\nend\n")
    assert ready["ready"]
    assert ready["first_step"] > 0
    assert epoch["seconds"] > 0
    assert end["peak"] is None or end["peak"] > 0
