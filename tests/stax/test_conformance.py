"""The public suite, as a third party would run it."""

from jax.example_libraries import optimizers, stax

from solstice.compat import StaxModel
from solstice.testing import ModelConformance, OptimizerConformance


class TestStax(ModelConformance):
    unsupported = {"batch_norm": "BatchNorm of Stax has no running statistics"}

    def build(self, *, hidden, classes, batch_norm, dropout):
        def layers(mode):
            norm = [stax.BatchNorm(axis=(0,))] if batch_norm else []
            drop = [stax.Dropout(1 - dropout, mode)] if dropout else []
            return stax.serial(stax.Dense(hidden), *norm, stax.Relu, *drop, stax.Dense(classes))

        return StaxModel(layers)


class TestStaxPair(ModelConformance):
    unsupported = {
        "batch_norm": "BatchNorm of Stax has no running statistics",
        "test_dropout_sleeps_in_evaluation": "a pair has one mode; a function of it has both",
    }

    def build(self, *, hidden, classes, batch_norm, dropout):
        drop = [stax.Dropout(1 - dropout)] if dropout else []
        return stax.serial(stax.Dense(hidden), stax.Relu, *drop, stax.Dense(classes))


class TestTripleSgd(OptimizerConformance):
    def build(self, *, learning_rate):
        return optimizers.sgd(learning_rate)


class TestTripleAdam(OptimizerConformance):
    def build(self, *, learning_rate):
        return optimizers.adam(learning_rate)
