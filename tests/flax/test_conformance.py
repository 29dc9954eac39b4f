"""The public suite, as a third party would run it."""

import jax
from flax import linen, nnx

from solstice.testing import ModelConformance


class Net(linen.Module):
    hidden: int
    classes: int
    batch_norm: bool
    dropout: float

    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Dense(self.hidden)(x)
        if self.batch_norm:
            x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = linen.Dropout(self.dropout, deterministic=not train)(linen.relu(x))
        return linen.Dense(self.classes)(x)


class NNXNet(nnx.Module):
    def __init__(self, hidden, classes, batch_norm, dropout, rngs):
        self.first = nnx.Linear(6, hidden, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, momentum=0.9, rngs=rngs) if batch_norm else None
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        x = self.norm(x) if self.norm is not None else x
        return self.last(self.dropout(jax.nn.relu(x)))


class TestLinen(ModelConformance):
    def build(self, *, hidden, classes, batch_norm, dropout):
        return Net(hidden, classes, batch_norm, dropout)


class TestNNX(ModelConformance):
    def build(self, *, hidden, classes, batch_norm, dropout):
        return NNXNet(hidden, classes, batch_norm, dropout, nnx.Rngs(0))


class TestNNXFactory(ModelConformance):
    def build(self, *, hidden, classes, batch_norm, dropout):
        from solstice.compat import NNXModel

        return NNXModel(lambda rngs: NNXNet(hidden, classes, batch_norm, dropout, rngs))
