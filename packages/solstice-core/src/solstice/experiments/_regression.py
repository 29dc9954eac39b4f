"""Regression: predicts one or several numbers per example."""

from typing import Unpack

import jax.numpy as jnp
from jax import Array

from solstice._batch import describe_batch, num_rows
from solstice._errors import DataError
from solstice._hints import number_hint
from solstice._keywords import keywords_explained
from solstice._types import Adaptable, AnyArray, Batch, Inputs, ModelOutputs, Targets
from solstice.experiments._checks import (
    count_nan,
    counted,
    is_of,
    of_shape,
    shape_of,
    without_last_axis,
)
from solstice.experiments._losses import squared_error
from solstice.experiments._supervised import Options, SupervisedExperiment
from solstice.experiments._task import Task, elementwise
from solstice.metrics import RegressionMetrics


class RegressionTask(Task):
    """One or several numbers per example."""

    def check(self, x: Inputs, targets: Targets) -> None:
        if not is_of(targets, jnp.floating, jnp.integer) or targets.ndim < 1:
            raise DataError(
                f"targets must be real numbers of shape [n] or [n, ...]; they are "
                f"{describe_batch(targets)}{number_hint(targets)}"
            )
        if targets.shape[1:] == (1,):  # predictions become [n], and [n] - [n, 1] would be [n, n]
            raise DataError(
                f"targets of one number per example must be of shape [n]; they are "
                f"{describe_batch(targets)}. Write `targets[:, 0]`"
            )

    @elementwise
    def check_values(self, batch: Batch, mask: AnyArray | None) -> None:
        y = counted(batch[1], mask)
        bad = count_nan(y) if is_of(y, jnp.floating) else 0
        if bad:
            raise DataError(
                f"{bad} of {y.size} targets are NaN. Leave those examples out, or mask them: "
                f"`solstice.data.Masked((x, y), ~np.isnan(y))`"
            )

    def outputs(self, outputs: ModelOutputs, x: Inputs, targets: Targets | None) -> Array:
        size = num_rows(x)
        predictions = without_last_axis(outputs, size)
        expected = shape_of(predictions) if targets is None else targets.shape
        must = f"the model must give predictions of the shape of the targets, {list(expected)}"
        return of_shape(predictions, (size, *expected[1:]), must, ", or reshape the targets")

    def losses(self, outputs: Array, targets: Array, mask: Array) -> Array:
        return squared_error(outputs, targets)

    def metrics(
        self, outputs: Array, targets: Array, mask: Array, weights: Array | None = None
    ) -> RegressionMetrics:
        return RegressionMetrics(outputs, targets, mask=mask, weights=weights)


class RegressionExperiment(SupervisedExperiment[RegressionTask]):
    """`RegressionExperiment(model, optax.adam(3e-4))`: predicts numbers.

    A batch is a pair `(features, targets)`, with weights `(features, targets, weights)`, or a
    `solstice.data.Masked` of either. Targets are real numbers of shape [n] or [n, ...]. The model
    returns predictions of the same shape; for targets of shape [n] it may also return [n, 1]. The
    loss is the mean squared error. Steps return `RegressionMetrics` with this loss.

    Args:
        loss: `loss(predictions, targets)`, one number for each example or element, such as
            `optax.huber_loss`, in place of the squared error.
        metrics: `metrics(predictions, targets, mask, weights=None)`, in place of
            `RegressionMetrics`.
        model, optimizer, seed, sample_input, micro_batches: as in `ClassificationExperiment`.

    Raises:
        ValueError, TypeError: as `ClassificationExperiment`.
        DataError: in a step, targets are not real numbers, or are NaN, or predictions have another
            shape.
    """

    @keywords_explained
    def __init__(
        self,
        model: Adaptable,
        optimizer: Adaptable,
        *,
        seed: int | Array = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, optimizer, RegressionTask(), seed=seed, **options)
