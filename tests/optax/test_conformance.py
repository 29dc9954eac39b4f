"""The public suite, as a third party would run it."""

import jax
import optax
import pytest
from optax import contrib

from solstice.testing import OptimizerConformance


class TestAdam(OptimizerConformance):
    def build(self, *, learning_rate):
        return optax.adam(learning_rate)


class TestClippedWithSchedule(OptimizerConformance):
    def build(self, *, learning_rate):
        schedule = optax.constant_schedule(learning_rate)
        return optax.chain(optax.clip_by_global_norm(100.0), optax.sgd(schedule))


@pytest.mark.slow
class TestMultiSteps(OptimizerConformance):
    def build(self, *, learning_rate):
        return optax.MultiSteps(optax.sgd(learning_rate), every_k_schedule=2)


@pytest.mark.slow
class TestInjected(OptimizerConformance):
    def build(self, *, learning_rate):
        return optax.inject_hyperparams(optax.adam)(learning_rate=learning_rate)


@pytest.mark.slow
class TestPartition(OptimizerConformance):
    def build(self, *, learning_rate):
        def labels(params):
            return jax.tree.map(lambda p: "wide" if p.ndim > 1 else "narrow", params)

        parts = {"wide": optax.sgd(learning_rate), "narrow": optax.adam(learning_rate)}
        return optax.partition(parts, labels)


@pytest.mark.slow
class TestSam(OptimizerConformance):
    def build(self, *, learning_rate):
        return contrib.sam(optax.sgd(learning_rate), optax.sgd(0.01), sync_period=2)


@pytest.mark.slow
class TestSamInAChain(OptimizerConformance):
    def build(self, *, learning_rate):
        sam = contrib.sam(optax.sgd(learning_rate), optax.sgd(0.01), sync_period=2)
        return optax.chain(optax.clip_by_global_norm(100.0), sam)


@pytest.mark.slow
class TestScheduleFree(OptimizerConformance):
    def build(self, *, learning_rate):
        return contrib.schedule_free_sgd(learning_rate)


@pytest.mark.slow
class TestEmaOfUpdates(OptimizerConformance):
    def build(self, *, learning_rate):
        return optax.chain(optax.sgd(learning_rate), optax.ema(0.5))


@pytest.mark.slow
class TestLookahead(OptimizerConformance):
    def build(self, *, learning_rate):
        return optax.lookahead(optax.sgd(learning_rate), sync_period=2, slow_step_size=0.5)


NEEDS_THE_LOSS = {"test_a_step_needs_no_value": "it needs the loss at each step"}


class TestPolyak(OptimizerConformance):
    unsupported = NEEDS_THE_LOSS

    def build(self, *, learning_rate):
        return optax.polyak_sgd(max_learning_rate=learning_rate)


@pytest.mark.slow
class TestLBFGS(OptimizerConformance):
    unsupported = NEEDS_THE_LOSS

    def build(self, *, learning_rate):
        return optax.lbfgs()


@pytest.mark.slow
class TestReduceOnPlateau(OptimizerConformance):
    unsupported = NEEDS_THE_LOSS

    def build(self, *, learning_rate):
        return optax.chain(optax.sgd(learning_rate), contrib.reduce_on_plateau(patience=5))


@pytest.mark.slow
class TestArmijo(OptimizerConformance):
    unsupported = NEEDS_THE_LOSS

    def build(self, *, learning_rate):
        search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
        return optax.chain(optax.sgd(1.0), search)
