"""The public suite, as a third party would run it, on the adapter of the core."""

import equinox as eqx
import jax
from equinox_nets import Stateful, Stateless

from solstice.compat import EquinoxModel
from solstice.testing import ModelConformance, OptimizerConformance, Sgd


class TestEquinox(ModelConformance):
    unsupported = {"batch_norm": "a module without eqx.nn.State has no statistics"}

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
