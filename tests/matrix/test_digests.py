"""Each framework traces a step to the same digest in every process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.example_libraries import stax

import solstice
from solstice._engine import CompiledStepper

IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
LABELS = np.arange(6, dtype=np.int32) % 3


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.BatchNorm(not train)(nn.Conv(4, (3, 3))(x))
        x = nn.Dropout(0.1, deterministic=not train)(nn.gelu(x))
        return nn.Dense(3)(x.mean((1, 2)))


class NNXNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(self.drop(nnx.relu(self.norm(self.conv(x)))).mean((1, 2)))


def haiku_net(x: Any, is_training: bool) -> Any:
    x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), is_training)
    return hk.Linear(3)(hk.dropout(hk.next_rng_key(), 0.1, jax.nn.relu(x)).mean((1, 2)))


MODELS: dict[str, Any] = {
    "linen": LinenNet(),
    "nnx": NNXNet(nnx.Rngs(0)),
    "haiku": hk.transform_with_state(haiku_net),
    "stax": stax.serial(stax.Conv(4, (3, 3)), stax.Relu, stax.Flatten, stax.Dense(3)),
    "equinox": eqx.nn.Sequential(
        [
            eqx.nn.Lambda(lambda x: x.ravel()),
            eqx.nn.MLP(64, 3, 8, 1, key=jax.random.key(0)),
        ]
    ),
}
OPTIMIZERS: dict[str, Any] = {
    "adamw": optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)),
    "multi_steps": optax.MultiSteps(optax.chain(optax.clip(1.0), optax.lamb(1e-3)), 2),
    "lbfgs": optax.lbfgs(),
}
STEPS = [*((name, "adamw") for name in MODELS), ("linen", "multi_steps"), ("linen", "lbfgs")]


def digests() -> dict[str, str]:
    found: dict[str, str] = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for name, rule in STEPS:
            experiment = solstice.ClassificationExperiment(MODELS[name], OPTIMIZERS[rule], 3)
            experiment = experiment.setup((IMAGES, LABELS))
            stepper = CompiledStepper(experiment, "train_step", (IMAGES, LABELS))
            found[f"{name} {rule}"] = stepper.traced.digest().digest
    return found


@pytest.mark.slow
def test_the_digests_of_all_frameworks_are_those_of_other_processes(tmp_path: Path):
    here = digests()
    assert len({*here.values()}) == len(here)
    jax.clear_caches()
    assert digests() == here
    code = "import json, test_digests; print(json.dumps(test_digests.digests()))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == here
