"""`nox -s bench_digest`: the digest of a step, over the time of the first step of that Experiment.

Each row is the median of new processes; the first step is traced, compiled and run by `fit`.
"""

import json
import os
import statistics
import subprocess
import sys

ROUNDS = 5

PROGRAM = """
import json, sys, time
import flax.linen as nn
import numpy as np
import optax
import solstice
from solstice._engine import CompiledStepper

name = sys.argv[1]
rng = np.random.default_rng(0)
labels = rng.integers(0, 10, 32).astype(np.int32)
images = rng.normal(size=(32, 28, 28, 1)).astype(np.float32)
tokens = rng.integers(0, 100, (8, 65)).astype(np.int32)

class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x.reshape(len(x), -1))))

class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for width in (16, 32, 64):
            x = nn.relu(nn.BatchNorm(not train)(nn.Conv(width, (3, 3), (2, 2))(x)))
        return nn.Dense(10)(x.mean((1, 2)))

class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(x)
        x = nn.Embed(100, 64)(x)
        for _ in range(6):
            x += nn.SelfAttention(4)(nn.LayerNorm()(x), mask)
            x += nn.Dense(64)(nn.gelu(nn.Dense(256)(nn.LayerNorm()(x))))
        return nn.Dense(100)(x)

opt = optax.adamw(1e-3)
experiment, batch = {
    "mlp": lambda: (solstice.ClassificationExperiment(MLP(), opt, 10), (images, labels)),
    "cnn": lambda: (solstice.ClassificationExperiment(CNN(), opt, 10), (images, labels)),
    "transformer": lambda: (solstice.LanguageModelExperiment(Transformer(), opt, 100), tokens),
}[name]()
experiment = experiment.setup(batch)
start = time.perf_counter()
solstice.Trainer().fit(experiment, [batch])
first = time.perf_counter() - start
traced = CompiledStepper(experiment, "train_step", batch).traced
start = time.perf_counter()
traced.digest()
print(json.dumps([first, time.perf_counter() - start]))
"""


def main() -> None:
    print(f"{'step':14}{'first step':>12}{'digest':>10}{'share':>8}")
    for name in ("mlp", "cnn", "transformer"):
        rows: list[list[float]] = []
        for _ in range(ROUNDS):
            command = [sys.executable, "-c", PROGRAM, name]
            done = subprocess.run(command, env=os.environ, capture_output=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
        first, digest = (statistics.median(column) for column in zip(*rows, strict=True))
        share = statistics.median(d / f for f, d in rows)
        print(f"{name:14}{1000 * first:9.0f} ms{1000 * digest:7.1f} ms{share:8.1%}")


if __name__ == "__main__":
    main()
