"""A toy net in place of the framework: delete it, and wrap the framework's nets."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@dataclass
class Net:
    """Two dense layers, with dropout between them."""

    hidden: int
    classes: int
    dropout: float = 0.0

    def create(self, key: Array, features: int) -> dict[str, Array]:
        """Initial values."""
        one, two = jax.random.split(key)
        return {
            "w1": jax.random.normal(one, (features, self.hidden)) / features**0.5,
            "b1": jnp.zeros(self.hidden),
            "w2": jax.random.normal(two, (self.hidden, self.classes)) / self.hidden**0.5,
            "b2": jnp.zeros(self.classes),
        }

    def apply(self, values: dict[str, Array], x: Any, *, key: Array | None, drop: bool) -> Array:
        """The outputs of a batch."""
        h = jax.nn.relu(x @ values["w1"] + values["b1"])
        if drop and self.dropout > 0:
            if key is None:
                raise ValueError("dropout needs a key in training")
            kept = jax.random.bernoulli(key, 1 - self.dropout, h.shape)
            h = jnp.where(kept, h / (1 - self.dropout), 0)
        return h @ values["w2"] + values["b2"]
