"""One script for one process and for several; the history is the same.

python docs/examples/many_processes.py
srun -n 2 python docs/examples/many_processes.py
mpirun -n 2 python docs/examples/many_processes.py
"""

import hashlib
import json

import equinox as eqx
import jax
import numpy as np
import optax
from _common import at_least, verdict

import solstice
from solstice.callbacks import ProgressBar

solstice.distributed.initialize()  # before any array: it connects the processes

EPOCHS, BATCH, CLASSES = 5, 64, 4


def spirals(count, seed):
    """Points on four spirals; every process makes the same ones."""
    rng = np.random.default_rng(seed)
    label = rng.integers(CLASSES, size=count)
    radius = rng.uniform(0.1, 1, count)
    angle = 4 * radius + 2 * np.pi * label / CLASSES + rng.normal(0, 0.1, count)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return points.astype(np.float32), label.astype(np.int32)


def train(callbacks=()):
    """The trained Experiment, and the history."""
    train_ds = solstice.data.batches(spirals(2000, seed=0), BATCH, shuffle=True, seed=0)
    val_ds = solstice.data.batches(spirals(500, seed=1), BATCH)
    model = eqx.nn.MLP(2, CLASSES, width_size=64, depth=2, key=jax.random.key(0))
    exp = solstice.ClassificationExperiment(model, optax.adam(1e-2), num_classes=CLASSES)
    trainer = solstice.Trainer([ProgressBar(), *callbacks], mesh="all")
    exp = trainer.fit(exp, train_ds, val_ds, num_epochs=EPOCHS)
    return exp, trainer.history


def summary(exp, history):
    """The losses, and a hash of all weights. Every process must call it."""
    weights = jax.tree.leaves(solstice.distributed.gather(exp.params))
    sha = hashlib.sha256(b"".join(leaf.tobytes() for leaf in weights)).hexdigest()[:16]
    losses = {name: history.series(name)[1] for name in ("train/loss", "val/loss")}
    return {"processes": jax.process_count(), "sha": sha, **losses}


def main():
    exp, history = train()
    found = summary(exp, history)
    if jax.process_index() == 0:  # the others have the same numbers
        print(json.dumps(found), flush=True)
        best = history.best("val/accuracy")
        verdict(at_least("validation accuracy", best["accuracy"], 0.95))


if __name__ == "__main__":
    main()
