"""Members of a population of each framework, with BatchNorm and dropout, are their runs alone."""

from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import solstice

RATES, SEEDS = np.array([0.03, 0.01], np.float32), np.arange(2)
X = np.random.default_rng(0).normal(size=(96, 4)).astype(np.float32)
Y = X[:, :3].argmax(1).astype(np.int32)
EPOCHS = 34

# No bias before BatchNorm: its gradient would be rounding errors alone.


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False):
        x = nn.Dense(8, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(3)(nn.Dropout(0.2, deterministic=not train)(x))


class NNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


@jax.numpy_dtype_promotion("standard")  # as Haiku needs, which multiplies masks and counts
def haiku(x: Any, is_training: bool):
    x = hk.Linear(8, with_bias=False)(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training))
    x = hk.dropout(hk.next_rng_key(), 0.2, x) if is_training else x
    return hk.Linear(3)(x)


def model_of(framework: str) -> Any:
    if framework == "linen":
        return Linen()
    if framework == "nnx":
        from solstice_flax import NNXModel

        return NNXModel(lambda rngs: NNX(rngs))
    return hk.transform_with_state(haiku)


@pytest.mark.parametrize("framework", ["linen", "nnx", "haiku"])
def test_each_member_is_its_run_alone(framework: str):
    def make(rate: Any, seed: Any):
        # Made in the trace: the model and the optimiser may be of the hyperparameters.
        optimizer = optax.sgd(rate, momentum=0.9)
        return solstice.ClassificationExperiment(model_of(framework), optimizer, 3, seed=seed)

    train_ds = solstice.data.batches((X, Y), 16, shuffle=True, seed=1)
    trainer, alone = solstice.Trainer(), solstice.Trainer()
    pop = solstice.Population(make, rate=RATES, seed=SEEDS)
    pop = trainer.fit(pop, train_ds, train_ds, num_epochs=EPOCHS)
    assert pop.is_traced
    exp = alone.fit(make(RATES[1], SEEDS[1]), train_ds, train_ds, num_epochs=EPOCHS)
    assert int(exp.step) == int(pop[1].step) == 204
    for mode, name in (("train", "loss"), ("val", "loss"), ("val", "accuracy")):
        ours, solo = (
            np.array([row[name] for row in one.history.rows if row["mode"] == mode])
            for one in (trainer, alone)
        )
        np.testing.assert_allclose(ours[:, 1], solo, rtol=0, atol=1e-6)
    pairs = zip(*map(jax.tree.leaves, (exp.params, pop[1].params)), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)
