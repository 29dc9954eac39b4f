"""Small networks of Equinox, as the public suite orders them."""

import equinox as eqx
import jax


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
