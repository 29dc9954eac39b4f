"""The contenders do the same work: one epoch of workload A ends with the same loss for all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STEPS = 64
CONTENDERS = [
    "hand_fused",
    "hand_fused_ready",
    "hand_written",
    "usual_loop",
    "keras_1",
    "keras_32",
    "linen",
    "nnx",
    "solstice_default",
    "solstice_none",
    "solstice_per_step",
    "solstice_ready",
]
OTHERS = {"keras_1": "keras", "keras_32": "keras", "linen": "flax", "nnx": "flax"}
"""Those that need a library which may not be there."""

EPOCHS = """
import importlib, json, sys, workloads

answers, workload = {}, workloads.get("A", int(sys.argv[1]))
for name in sys.argv[2:]:
    try:
        run_epoch = importlib.import_module(f"contenders.{name}").make(workload)
    except ModuleNotFoundError as error:
        answers[name] = error.name
        continue
    run_epoch(workload.batches[:1])
    answers[name] = run_epoch(workload.batches)
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
def test_every_contender_reaches_the_loss_of_the_limit():
    """The limit as the benchmark asks it, and all others in one process, which imports JAX once."""
    worker = [str(HERE / "worker.py"), "limit", "A", str(STEPS)]
    ready, limit, _ = answer_of(*worker, input="epoch\nend\n")
    assert ready["ready"]
    found = answer_of("-c", EPOCHS, str(STEPS), *CONTENDERS)[-1]
    for name in CONTENDERS:
        if found[name] == OTHERS.get(name, ""):
            continue  # its library is not installed
        loss, accuracy = found[name]["loss"], found[name]["accuracy"]
        assert loss == pytest.approx(limit["loss"], abs=1e-4), name
        assert accuracy == pytest.approx(limit["accuracy"], abs=2e-3), name
