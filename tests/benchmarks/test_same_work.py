"""The contenders do the same work: one epoch of workload A ends with the same loss for all."""

import functools
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


@functools.cache
def epoch(contender):
    """What a worker answers to one epoch, as the benchmark asks it."""
    pytest.importorskip("optax")
    done = subprocess.run(
        [sys.executable, str(HERE / "worker.py"), contender, "A", str(STEPS)],
        input="epoch\nend\n",
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if not answers[0]["ready"]:
        pytest.skip(answers[0]["why"])
    return answers[1]


@pytest.mark.parametrize("contender", CONTENDERS)
def test_a_contender_reaches_the_loss_of_the_limit(contender):
    mine, limit = epoch(contender), epoch("limit")
    assert mine["loss"] == pytest.approx(limit["loss"], abs=1e-4)
    assert mine["accuracy"] == pytest.approx(limit["accuracy"], abs=2e-3)
