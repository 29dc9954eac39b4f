"""Task: pure functions that define what a SupervisedExperiment learns."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

import equinox as eqx
from jax import Array

from solstice._metrics import Metrics
from solstice._types import AnyArray, Batch, Inputs, ModelOutputs, Outputs, Targets
from solstice.experiments._checks import check_floating, features_of, pair_of

LossFunction: TypeAlias = Callable[[Any, Any], Array]
"""`losses = loss(outputs, targets)`: shape [n, ...], not averaged."""

MetricsFunction: TypeAlias = Callable[..., Metrics]
"""`metrics(outputs, targets, mask, weights=None)`: the Metrics of one batch; the mask is boolean.

Without the parameter `weights`, it takes only batches without weights.
"""


_Check = TypeVar("_Check", bound=Callable[..., None])


def elementwise(check_values: _Check) -> _Check:
    """`@experiments.elementwise` above `check_values`: check the values of many batches at once.

    ```python
    @elementwise
    def check_values(self, batch, mask):
        if (counted(batch[1], mask) < 0).any():
            raise DataError("targets must be 0 or more")
    ```

    For checks of each value by itself, whatever the shapes: the arrays of `batch` and `mask` then
    have one more axis in front, of several batches. If the check raises, it runs for each of them,
    so the message is about one batch. An override of `check_values` needs the decorator again.
    """
    cast("Any", check_values).is_elementwise = True
    return check_values


def has_pairs(task: "Task") -> bool:
    """Whether the batches are pairs, so that a third part has the weights."""
    return type(task).split in (Task.split, Reconstruction.split)


def is_elementwise(check_values: Callable[..., None]) -> bool:
    """Whether it has the decorator, or is the default, which checks nothing."""
    return check_values is Task.check_values or getattr(check_values, "is_elementwise", False)


class Task(eqx.Module):
    """`class Ranking(Task)`: what a `SupervisedExperiment` learns, as pure functions.

    ```python
    class Poisson(Task):
        def outputs(self, outputs, x, targets):
            if outputs.shape != (len(x), 1):
                raise DataError(f"the model must give one log rate for each of {len(x)} examples")
            return outputs[:, 0]

        def losses(self, outputs, targets, mask):
            return jnp.exp(outputs) - targets * outputs

        def metrics(self, outputs, targets, mask, weights=None):
            return RegressionMetrics(jnp.exp(outputs), targets, mask=mask, weights=weights)

    exp = SupervisedExperiment(model, optax.adam(3e-4), Poisson())
    ```

    Three functions are required: `outputs`, `losses` and `metrics`. The others have defaults for
    batches that are pairs `(features, targets)`. A Task is an immutable `equinox.Module`: declare
    settings with `eqx.field(static=True)`; arrays are part of the state of the Experiment.

    The Experiment takes a `solstice.data.Masked` apart, and checks the lengths of inputs, targets
    and mask. It replaces masked targets by 0, since they may be NaN. It multiplies the losses by
    the weights of examples, of a `Masked` or of a batch `(features, targets, weights)`; only
    `metrics` sees them. All functions but `check_values` run in compiled steps, so they cannot read
    values.

    Attributes:
        free_axes: number of leading axes of the inputs that may differ from batch to batch; see
            `Learner`.
    """

    free_axes: ClassVar[int] = 1

    def split(self, batch: Batch, mask: AnyArray | None) -> tuple[Inputs, Targets, AnyArray | None]:
        """`x, targets, mask = task.split(batch, mask)`: the parts of a batch. Optional.

        By default, the batch is a pair `(x, targets)`. Only with this default are three parts a
        pair and weights.

        Args:
            batch: the batch, without its `Masked`.
            mask: the mask of a `Masked`, boolean of shape [n, ...]; None without one. Weights of
                shape [n] are not in it. Weights with more axes are passed in its place.

        Returns:
            Inputs of the model; targets, an array or a pytree of arrays; and which targets count:
            None for all, or booleans, or weights in floats, of the first axes of the targets.
        """
        return (*pair_of(batch), mask)

    def inputs(self, batch: Batch) -> Inputs:
        """`x = task.inputs(batch)`: the inputs of a batch for prediction. Optional.

        The batch may have no targets. By default, `x` is the batch, or its first entry if it is a
        tuple or list.
        """
        return features_of(batch)

    def check(self, x: Inputs, targets: Targets) -> None:
        """`task.check(x, targets)`: raise a `DataError` for a wrong shape or dtype. Optional."""
        del x, targets

    def check_values(self, batch: Batch, mask: AnyArray | None) -> None:
        """`task.check_values(batch, mask)`: raise a `DataError` for invalid values. Optional.

        It runs on the host, for every batch, before the step, so it should be cheap. Arguments are
        those of `split`; `solstice.experiments.counted(targets, mask)` has the unmasked targets.
        With `@solstice.experiments.elementwise` it runs once for many batches.
        """
        del batch, mask

    @abstractmethod
    def outputs(self, outputs: ModelOutputs, x: Inputs, targets: Targets | None) -> ModelOutputs:
        """`outputs = task.outputs(model(x), x, targets)`: the outputs, after a check of shapes.

        Raise a `DataError` for outputs of another shape: an array of shape [n, 1] against one of
        [n] broadcasts to [n, n] without an error.

        `x` and `targets` are those of `split`; in a call of the Experiment and in prediction, the
        targets are None.
        """

    @abstractmethod
    def losses(self, outputs: ModelOutputs, targets: Targets, mask: Array) -> Array:
        """`losses = task.losses(outputs, targets, mask)`: shape [n, ...], not averaged.

        The user's `loss` replaces it. `mask` is boolean: that of `split`, or all True of shape [n].
        Examples of weight 0 stay in it; their losses may be NaN.
        """

    def weights(self, targets: Targets, mask: AnyArray | None, losses: Array) -> AnyArray | None:
        """`weights = task.weights(targets, mask, losses)`: the weight of each loss. Optional.

        The loss is the weighted mean. Weights have the first axes of the losses, and are broadcast
        over the rest; None gives all losses the same weight. By default, they are the mask. The
        Experiment multiplies them by the weights of the batch.
        """
        del targets, losses
        return mask

    @abstractmethod
    def metrics(
        self, outputs: ModelOutputs, targets: Targets, mask: Array, weights: Array | None = None
    ) -> Metrics:
        """`metrics = task.metrics(outputs, targets, mask, weights=weights)`: those of one batch.

        The Experiment adds "loss". The user's `metrics` replaces it. `weights` are those of the
        entries, in floats, of the shape of the mask, and 0 where it is false; None if the batch has
        none. Examples of weight 0 stay in the mask. Without this parameter, batches with weights
        are refused.
        """

    def predictions(self, outputs: ModelOutputs) -> Outputs:
        """`predictions = task.predictions(outputs)`: the result of `predict_step`. Optional."""
        return outputs


class Reconstruction(Task):
    """`class Mine(Reconstruction)`: a task whose targets are the inputs."""

    def split(self, batch: Batch, mask: AnyArray | None) -> tuple[Inputs, Inputs, AnyArray | None]:
        x = features_of(batch)
        return x, x, mask

    def check(self, x: Inputs, targets: Targets) -> None:
        check_floating(x)
