"""Metrics that are made like those of CLU and metrax, without either."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@partial(jax.tree_util.register_dataclass, data_fields=["total", "count"], meta_fields=["scale"])
@dataclass
class Brightness:
    """The mean of all pixels, in units of `scale`."""

    total: Any
    count: Any
    scale: float

    @classmethod
    def from_model_output(cls, images, mask=None, scale=1.0):
        mask = jnp.ones(len(images), bool) if mask is None else mask
        each = images.reshape(len(images), -1).mean(1)
        return cls(jnp.sum(jnp.where(mask, each, 0)), jnp.sum(mask), scale)

    def merge(self, other):
        return type(self)(self.total + other.total, self.count + other.count, self.scale)

    def compute(self):
        number = jnp.maximum(self.count, 1).astype(self.total.dtype)
        return self.total / number / self.scale


@partial(jax.tree_util.register_dataclass, data_fields=["total"], meta_fields=[])
@dataclass
class NoMerge:
    """It promises to merge, as the base class of CLU does, and cannot."""

    total: Any

    @classmethod
    def from_model_output(cls, values):
        return cls(jnp.sum(values))

    def merge(self, other):
        raise NotImplementedError("Must override merge()")

    def compute(self):
        return {"total": self.total, "half": self.total / 2}


@partial(jax.tree_util.register_dataclass, data_fields=["total"], meta_fields=[])
@dataclass
class Both(NoMerge):
    """Two values by name."""

    def merge(self, other):
        return type(self)(self.total + other.total)
