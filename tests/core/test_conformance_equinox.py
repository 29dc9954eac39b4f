"""The public suite, as a third party would run it, on the adapter of the core."""

import equinox as eqx
import jax

from solstice.compat import EquinoxModel
from solstice.testing import ModelConformance, OptimizerConformance, Sgd


class Net(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm | None
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, hidden, classes, batch_norm, dropout, key):
        one, two = jax.random.split(key)
        self.first = eqx.nn.Linear(6, hidden, key=one)
        self.norm = (
            eqx.nn.BatchNorm(hidden, "batch", momentum=0.9, mode="batch") if batch_norm else None
        )
        self.dropout = eqx.nn.Dropout(dropout)
        self.last = eqx.nn.Linear(hidden, classes, key=two)


class Stateless(Net):
    def __call__(self, x, *, key=None):
        return self.last(self.dropout(jax.nn.relu(self.first(x)), key=key))


class Stateful(Net):
    def __call__(self, x, state, *, key=None):
        x = self.first(x)
        x, state = self.norm(x, state) if self.norm is not None else (x, state)
        return self.last(self.dropout(jax.nn.relu(x), key=key)), state


class TestEquinox(ModelConformance):
    lacks = {"batch_norm": "a module without eqx.nn.State has no statistics"}

    def build(self, *, hidden, classes, batch_norm, dropout):
        if batch_norm:
            raise NotImplementedError
        return Stateless(hidden, classes, batch_norm, dropout, jax.random.key(0))


class TestEquinoxWithState(ModelConformance):
    def build(self, *, hidden, classes, batch_norm, dropout):
        return EquinoxModel(
            lambda key: eqx.nn.make_with_state(Stateful)(hidden, classes, batch_norm, dropout, key)
        )


class TestSgd(OptimizerConformance):
    def build(self, *, learning_rate):
        return Sgd(learning_rate)
