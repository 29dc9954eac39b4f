"""Resampled: an Experiment whose metrics have error bars."""

from collections.abc import Callable
from typing import Generic, Self, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from solstice._batch import num_examples
from solstice._experiment import Experiment, check_experiment, stacked_check_of
from solstice._replace import replace
from solstice._types import Batch, Outputs
from solstice.data import Masked
from solstice.resampling._bootstrap import Bootstrap, check_settings
from solstice.resampling._examples import check_examples, metrics_of_each

_E = TypeVar("_E", bound=Experiment)


class Resampled(Experiment, Generic[_E]):
    """`solstice.Resampled(exp)`: an Experiment whose evaluation has error bars.

    `trainer.test(exp, test_ds, confidence=0.95)` is `trainer.test(Resampled(exp), test_ds)`.

    Its `eval_step` runs that of the Experiment on each example by itself, in one `jax.vmap`, and
    returns a `Bootstrap` of the metrics. So any Experiment works whose examples do not depend on
    each other: `setup` compares the metrics of the first batch with those of its examples. Masked
    examples are left out. Random numbers in `eval_step` are the same for each example, and the
    Experiment that it returns is dropped.

    Args:
        experiment: the Experiment to evaluate.
        confidence: the share of data sets whose interval contains the true value, in (0, 1).
        replicates: number of replicates of the data set, 20 or more.
        seed: an integer, for other replicates.

    Raises:
        TypeError: `experiment` is not an Experiment.
        ValueError: a number is out of range.
        ExperimentError: in `setup`, the metrics of a batch are not those of its examples.
    """

    wrapped: _E
    seen: Array
    """The number of examples so far, uint32."""
    confidence: float = eqx.field(static=True)
    replicates: int = eqx.field(static=True)
    seed: int = eqx.field(static=True)

    def __init__(
        self,
        experiment: _E,
        *,
        confidence: float = 0.95,
        replicates: int = 1000,
        seed: int = 0,
    ) -> None:
        check_experiment(experiment)
        self.wrapped = experiment
        self.seen = jnp.zeros((), jnp.uint32)
        self.confidence, self.replicates, self.seed = check_settings(confidence, replicates, seed)

    def setup(self, batch: Batch) -> Self:
        """Sets the Experiment up, and checks that metrics of a batch are those of its examples."""
        wrapped = self.wrapped.setup(batch)
        check_examples(wrapped, batch)
        return replace(self, wrapped=wrapped)

    def check_batch(self, batch: Batch) -> None:
        """The check of the Experiment."""
        type(self.wrapped).check_batch(self.wrapped, batch)

    def stacked_check(self) -> Callable[[Batch], None] | None:
        """The check of the Experiment."""
        return stacked_check_of(self.wrapped)

    def train_step(self, batch: Batch) -> tuple[Self, Outputs]:
        """Trains the Experiment, without error bars."""
        wrapped, outputs = self.wrapped.train_step(batch)
        return replace(self, wrapped=wrapped), outputs

    def predict_step(self, batch: Batch) -> Outputs:
        """The predictions of the Experiment."""
        return self.wrapped.predict_step(batch)

    def eval_step(self, batch: Batch) -> tuple[Self, Outputs]:
        """`exp, metrics = exp.eval_step(batch)`: a `Bootstrap` of the metrics of each example."""
        each = metrics_of_each(self.wrapped, batch)
        if each is None:
            return self, None
        there = _there(batch)
        count = jnp.cumsum(there.astype(jnp.uint32), dtype=jnp.uint32)
        # A masked example has the number of the one before it; it changes no metrics.
        index = self.seen + jnp.maximum(count, 1) - 1
        metrics = Bootstrap(
            each,
            index,
            confidence=self.confidence,
            replicates=self.replicates,
            seed=self.seed,
        )
        return replace(self, seen=self.seen + count[-1]), metrics


def _there(batch: Batch) -> Array:
    """Whether each example counts: not if a `Masked` leaves all of it out."""
    size = num_examples(batch)
    if not isinstance(batch, Masked):
        return jnp.ones(size, bool)
    return jnp.any(jnp.asarray(batch.mask).reshape(size, -1).astype(bool), axis=1)
