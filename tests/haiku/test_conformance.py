"""The public suite, as a third party would run it."""

import haiku as hk
import jax

from solstice.testing import ModelConformance


def net(hidden, classes, batch_norm, dropout):
    def function(x, is_training):
        x = hk.Linear(hidden)(x)
        if batch_norm:
            x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training)
        x = jax.nn.relu(x)
        if dropout and is_training:
            x = hk.dropout(hk.next_rng_key(), dropout, x)
        return hk.Linear(classes)(x)

    return function


class TestTransformWithState(ModelConformance):
    def build(self, *, hidden, classes, batch_norm, dropout):
        return hk.transform_with_state(net(hidden, classes, batch_norm, dropout))


class TestTransform(ModelConformance):
    unsupported = {"batch_norm": "hk.transform has no state"}

    def build(self, *, hidden, classes, batch_norm, dropout):
        return hk.transform(net(hidden, classes, batch_norm, dropout))
