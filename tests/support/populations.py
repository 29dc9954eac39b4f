"""A small Experiment of which populations are made."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import solstice


class Line(solstice.Experiment):
    """A line, with a rate in its state and noise by its key."""

    w: jax.Array
    key: jax.Array
    rate: jax.Array
    step: jax.Array
    scale: Any

    def __init__(self, rate: Any = 0.1, seed: Any = 0, width: Any = 4, scale: Any = 0.01):
        self.key, self.rate = jax.random.key(seed), jnp.asarray(rate, jnp.float32)
        self.w = jax.random.normal(self.key, (int(width),))
        self.step, self.scale = jnp.zeros((), jnp.int32), scale

    def train_step(self, batch: Any):
        loss, grads = jax.value_and_grad(self.loss)(self.w, batch)
        noise = jax.random.normal(jax.random.fold_in(self.key, self.step), self.w.shape)
        w = self.w - self.rate * (grads + self.scale * noise)
        new = solstice.replace(self, w=w, step=self.step + 1)
        return new, {"loss": loss, "aux": {"norm": jnp.sum(w)}}

    def eval_step(self, batch: Any):
        return self, {"loss": self.loss(self.w, batch)}

    def predict_step(self, batch: Any):
        return {"y": batch[0] @ self.w, "norm": jnp.sum(self.w)}

    def loss(self, w: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2)


def line_data(size: int = 40, **options: Any):
    x = np.random.default_rng(0).normal(size=(size, 4)).astype(np.float32)
    return solstice.data.batches((x, x.sum(1)), 8, **options)


def lines(size: int = 3) -> solstice.Population:
    rates = np.geomspace(0.01, 0.2, size).astype(np.float32)
    return solstice.Population(Line, rate=rates, seed=range(size))


def column(trainer: Any, name: str) -> Any:
    mode, _, metric = name.partition("/")
    return np.array([row[metric] for row in trainer.history.rows if row["mode"] == mode])
