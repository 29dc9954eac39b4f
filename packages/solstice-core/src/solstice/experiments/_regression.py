"""Regression Experiment: predicts one or several numbers per example."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice._batch import describe_batch, num_rows
from solstice._errors import DataError
from solstice._hints import number_hint
from solstice._types import Batch
from solstice.experiments._base import (
    LossFunction,
    MetricsFunction,
    OneModelExperiment,
    Options,
    shape_of,
    without_last_axis,
)
from solstice.experiments._learner import Learner
from solstice.experiments._losses import squared_error
from solstice.metrics import RegressionMetrics


class RegressionExperiment(OneModelExperiment):
    """`RegressionExperiment(model, optax.adam(3e-4))`: predicts numbers.

    A batch is a pair `(features, targets)`, or a `solstice.data.Masked` of one. Targets are real
    numbers of shape [n] or [n, ...]. The model returns predictions of the same shape; for targets
    of shape [n] it may also return [n, 1]. The loss is the mean squared error. Steps return
    `RegressionMetrics` with this loss.

    Args:
        loss: `loss(predictions, targets)`, one number for each example or element, such as
            `optax.huber_loss`, in place of the squared error.
        metrics: `metrics(predictions, targets, mask)`, in place of `RegressionMetrics`.
        model, optimizer, seed, sample_input, micro_batches: as in `ClassificationExperiment`.

    Raises:
        ValueError, TypeError: as `ClassificationExperiment`.
        DataError: in a step, targets are not real numbers, or are NaN, or predictions have another
            shape.
    """

    learner: Learner
    options: Options = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        *,
        seed: int | Array = 0,
        sample_input: Any = None,
        loss: LossFunction | None = None,
        metrics: MetricsFunction | None = None,
        micro_batches: int = 1,
    ) -> None:
        self.learner = Learner(model, optimizer, seed=seed, sample_input=sample_input)
        self.options = Options(loss, metrics, micro_batches)

    def predict_step(self, batch: Batch) -> Array:
        """`predictions = exp.predict_step(x)`: the batch is `x` alone, or `x` and targets."""
        return self(self._features(batch))

    def _check_targets(self, y: Any) -> None:
        real = hasattr(y, "dtype") and (
            jnp.issubdtype(y.dtype, jnp.floating) or jnp.issubdtype(y.dtype, jnp.integer)
        )
        if not real or y.ndim < 1:
            raise DataError(
                f"targets must be real numbers of shape [n] or [n, ...]; they are "
                f"{describe_batch(y)}{number_hint(y)}"
            )
        if y.shape[1:] == (1,):  # predictions become [n], and [n] - [n, 1] would be [n, n]
            raise DataError(
                f"targets of one number per example must be of shape [n]; they are "
                f"{describe_batch(y)}. Write `targets[:, 0]`"
            )

    def _check_values(self, y: Any) -> None:
        bad = np.isnan(y).sum() if jnp.issubdtype(y.dtype, jnp.floating) else 0
        if bad:
            raise DataError(
                f"{bad} of {y.size} targets are NaN. Leave those examples out, or mask them: "
                f"`solstice.data.Masked((x, y), ~np.isnan(y))`"
            )

    def _outputs(self, outputs: Any, x: Any, y: Any) -> Any:
        size = num_rows(x)
        outputs = without_last_axis(outputs, size)
        expected = shape_of(outputs) if y is None else y.shape
        if shape_of(outputs) != expected or expected[:1] != (size,):
            raise DataError(
                f"the model must give predictions of the shape of the targets, "
                f"{list(expected)}; it gave {describe_batch(outputs)}. Change its last layer, or "
                f"reshape the targets"
            )
        return outputs

    def _usual_loss(self, outputs: Any, y: Any) -> Array:
        return squared_error(outputs, y)

    def _usual_metrics(self, outputs: Any, y: Any, mask: Array) -> RegressionMetrics:
        return RegressionMetrics(outputs, y, mask=mask)
