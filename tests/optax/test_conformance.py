"""The public suite, as a third party would run it."""

import optax

from solstice.testing import OptimizerConformance


class TestSgd(OptimizerConformance):
    def build(self, *, learning_rate):
        return optax.sgd(learning_rate)


class TestAdam(OptimizerConformance):
    def build(self, *, learning_rate):
        return optax.adam(learning_rate)


class TestClippedWithSchedule(OptimizerConformance):
    def build(self, *, learning_rate):
        schedule = optax.constant_schedule(learning_rate)
        return optax.chain(optax.clip_by_global_norm(100.0), optax.sgd(schedule))
