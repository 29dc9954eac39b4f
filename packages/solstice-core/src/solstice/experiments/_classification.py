"""Classification: one of many classes, one of two, and several labels at once."""

from typing import Any, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice import _hints
from solstice._arguments import probability, whole
from solstice._batch import describe_batch, num_rows
from solstice._errors import DataError
from solstice._keywords import keywords_explained
from solstice._types import Adaptable, AnyArray, Batch, Inputs, ModelOutputs, Targets
from solstice.experiments._checks import (
    counted,
    is_of,
    of_shape,
    shape_of,
    spread,
    without_last_axis,
)
from solstice.experiments._losses import (
    binary_cross_entropy,
    check_smoothing,
    check_weights,
    cross_entropy,
)
from solstice.experiments._supervised import Options, SupervisedExperiment
from solstice.experiments._task import Task, elementwise
from solstice.metrics import BinaryMetrics, ClassificationMetrics, MultilabelMetrics


class ClassificationTask(Task):
    """One of many classes."""

    class_weights: Array | None
    num_classes: int = eqx.field(static=True)
    label_smoothing: float = eqx.field(static=True)

    def check(self, x: Inputs, targets: Targets) -> None:
        if not is_of(targets, jnp.integer) or targets.ndim != 1:
            raise DataError(
                f"labels must be integers of shape [n]; they are {describe_batch(targets)}"
                f"{_hints.class_hint(targets)}"
            )

    @elementwise
    def check_values(self, batch: Batch, mask: AnyArray | None) -> None:
        y = counted(batch[1], mask)
        if y.size and (y.min() < 0 or y.max() >= self.num_classes):
            bad = y[(y < 0) | (y >= self.num_classes)]
            raise DataError(
                f"{bad.size} of {y.size} labels are outside [0, {self.num_classes}), such as "
                f"{bad[0]}{_hints.class_range_hint(y, self.num_classes)}"
            )

    def outputs(self, outputs: ModelOutputs, x: Inputs, targets: Targets) -> Array:
        return _logits(outputs, num_rows(x), self.num_classes)

    def losses(self, outputs: Array, targets: Array, mask: Array) -> Array:
        return cross_entropy(outputs, targets, self.label_smoothing)

    def weights(self, targets: Array, mask: AnyArray | None, losses: Array) -> AnyArray | None:
        return _weights_of(self.class_weights, targets, mask)

    def metrics(
        self, outputs: Array, targets: Array, mask: Array, weights: Array | None = None
    ) -> ClassificationMetrics:
        # `WithLoss` replaces this loss of 0.
        return ClassificationMetrics(
            outputs, targets, 0.0, self.num_classes, mask=mask, weights=weights
        )

    def predictions(self, outputs: Array) -> Array:
        return jax.nn.softmax(outputs)


class ClassificationExperiment(SupervisedExperiment[ClassificationTask]):
    """`ClassificationExperiment(flax_module, optax.adam(3e-4), num_classes=10)`: a classifier.

    ```python
    exp = solstice.ClassificationExperiment(model, optax.adam(3e-4), num_classes=10)
    exp = exp.train(train_ds, num_epochs=5)
    exp.test(test_ds)["accuracy"]
    ```

    A batch is a pair `(features, labels)`, or `(features, labels, weights)` with the weight of each
    example, floats of shape [n], or a `solstice.data.Masked` of either. Features are an array or a
    pytree of arrays with the examples on axis 0; labels are integers of shape [n] in [0,
    num_classes). The model returns logits of shape [n, num_classes]. The loss is the mean softmax
    cross-entropy. Steps return `ClassificationMetrics` with this loss.

    Args:
        model: a `solstice.compat.Model`, or a model of any framework with an adapter.
        optimizer: a `solstice.compat.Optimizer`, or an optimiser with an adapter.
        num_classes: number of classes, 2 or more.
        seed: an integer or a PRNG key (typed or legacy), for the initial weights and for randomness
            in training. A model that already has weights, such as an Equinox module, keeps them;
            `EquinoxModel(lambda key: ...)` is created from the seed.
        sample_input: features of a batch of any size, for the model to be initialised with. Left
            out, the first batch is taken.
        label_smoothing: probability moved from the label to all classes evenly, in [0, 1).
        class_weights: weight of each class in the loss, shape [num_classes]. The loss is divided
            by the sum of the weights of the examples, in training and in evaluation.
        loss: `loss(logits, labels)`, one number for each example, in place of the cross-entropy.
        metrics: `metrics(logits, labels, mask, weights=None)`, Metrics in place of
            `ClassificationMetrics`. The mask, boolean of shape [n], is true for examples that
            count; the weights are of shape [n], or None if the batch has none.
        micro_batches: number of parts into which a batch is cut, to save memory; see
            `Learner.update`.

    Attributes:
        learner: a `Learner`: the model, the optimiser and the state of both.
        params, state, opt_state, step: those of the learner.

    Raises:
        ValueError: `num_classes` is below 2, or an option is out of its range.
        TypeError, solstice.compat.AdapterError: there is no adapter for the model or optimiser; or
            a param of the model is not a floating-point array.
        DataError: in a step, labels are not integers of shape [n] in [0, num_classes), the shape
            of features is not the one at initialisation, or logits are not of shape
            [n, num_classes].
    """

    @keywords_explained
    def __init__(
        self,
        model: Adaptable,
        optimizer: Adaptable,
        num_classes: int = 10,
        seed: int | Array = 0,
        *,
        label_smoothing: float = 0.0,
        class_weights: ArrayLike | None = None,
        **options: Unpack[Options],
    ) -> None:
        num_classes = whole("num_classes", num_classes, 2)
        smoothing = check_smoothing(label_smoothing, options.get("loss"))
        task = ClassificationTask(check_weights(class_weights, num_classes), num_classes, smoothing)
        super().__init__(model, optimizer, task, seed=seed, **options)


class BinaryTask(Task):
    """One of two classes."""

    class_weights: Array | None
    threshold: float = eqx.field(static=True)
    label_smoothing: float = eqx.field(static=True)

    def check(self, x: Inputs, targets: Targets) -> None:
        if not is_of(targets, jnp.integer, jnp.bool_) or targets.ndim != 1:
            raise DataError(
                f"labels must be integers or booleans of shape [n], each 0 or 1; they are "
                f"{describe_batch(targets)}{_hints.binary_hint(targets)}"
            )

    @elementwise
    def check_values(self, batch: Batch, mask: AnyArray | None) -> None:
        _check_zeros_and_ones(counted(batch[1], mask))

    def outputs(self, outputs: ModelOutputs, x: Inputs, targets: Targets) -> Array:
        size = num_rows(x)
        must = f"the model must give one logit for each example, of shape [{size}] or [{size}, 1]"
        return of_shape(without_last_axis(outputs, size), (size,), must)

    def losses(self, outputs: Array, targets: Array, mask: Array) -> Array:
        return binary_cross_entropy(outputs, targets, self.label_smoothing)

    def weights(self, targets: Array, mask: AnyArray | None, losses: Array) -> AnyArray | None:
        return _weights_of(self.class_weights, targets, mask)

    def metrics(
        self, outputs: Array, targets: Array, mask: Array, weights: Array | None = None
    ) -> BinaryMetrics:
        options: dict[str, Any] = {"threshold": self.threshold, "from_logits": True}
        return BinaryMetrics(outputs, targets, mask=mask, weights=weights, **options)

    def predictions(self, outputs: Array) -> Array:
        return jax.nn.sigmoid(outputs)


class BinaryClassificationExperiment(SupervisedExperiment[BinaryTask]):
    """`BinaryClassificationExperiment(model, optax.adam(3e-4))`: a classifier for two classes.

    A batch is as in `ClassificationExperiment`. Labels have shape [n], each 0 or 1 (integers or
    booleans). The model returns the logits of class 1, of shape [n] or [n, 1]. The loss is the mean
    binary cross-entropy. Steps return `BinaryMetrics` with this loss.

    Args:
        threshold: in the metrics, examples with at least this probability are predicted as class 1.
        class_weights: weights of class 0 and of class 1 in the loss, shape [2].
        label_smoothing: labels become `1 - label_smoothing / 2` and `label_smoothing / 2`.
        metrics: `metrics(logits, labels, mask, weights=None)`, Metrics in place of
            `BinaryMetrics`, such as `BinaryCurves` for an exact ROC-AUC.
        model, optimizer, seed, sample_input, loss, micro_batches: as in
            `ClassificationExperiment`.

    Raises:
        ValueError, TypeError, DataError: as `ClassificationExperiment`.
    """

    @keywords_explained
    def __init__(
        self,
        model: Adaptable,
        optimizer: Adaptable,
        *,
        seed: int | Array = 0,
        threshold: float = 0.5,
        label_smoothing: float = 0.0,
        class_weights: ArrayLike | None = None,
        **options: Unpack[Options],
    ) -> None:
        threshold = probability("threshold", threshold)
        smoothing = check_smoothing(label_smoothing, options.get("loss"))
        task = BinaryTask(check_weights(class_weights, 2), threshold, smoothing)
        super().__init__(model, optimizer, task, seed=seed, **options)


class MultilabelTask(Task):
    """Several labels at once, each 0 or 1."""

    class_weights: Array | None
    num_labels: int = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    label_smoothing: float = eqx.field(static=True)

    def check(self, x: Inputs, targets: Targets) -> None:
        if not is_of(targets, jnp.integer, jnp.bool_) or targets.ndim != 2:
            raise DataError(
                f"labels must be integers or booleans of shape [n, {self.num_labels}], each 0 or "
                f"1; they are {describe_batch(targets)}"
                f"{_hints.binary_rows_hint(targets, self.num_labels)}"
            )
        if targets.shape[1] != self.num_labels:
            raise DataError(
                f"labels must be of shape [n, {self.num_labels}]; they are "
                f"{describe_batch(targets)}"
            )

    @elementwise
    def check_values(self, batch: Batch, mask: AnyArray | None) -> None:
        _check_zeros_and_ones(counted(batch[1], mask))

    def outputs(self, outputs: ModelOutputs, x: Inputs, targets: Targets) -> Array:
        return _logits(outputs, num_rows(x), self.num_labels)

    def losses(self, outputs: Array, targets: Array, mask: Array) -> Array:
        return binary_cross_entropy(outputs, targets, self.label_smoothing)

    def weights(self, targets: Array, mask: AnyArray | None, losses: Array) -> AnyArray | None:
        if self.class_weights is None:
            return mask
        if shape_of(losses) != targets.shape:
            raise DataError(
                f"class_weights weigh each label, so the loss must be of shape "
                f"{list(targets.shape)}; it is {describe_batch(losses)}. Do not average over "
                f"labels in the loss, or weigh them there and leave class_weights out"
            )
        weights = self.class_weights[None]
        given = 1 if mask is None else jnp.asarray(spread(mask, targets), weights.dtype)
        return weights * given

    def metrics(
        self, outputs: Array, targets: Array, mask: Array, weights: Array | None = None
    ) -> MultilabelMetrics:
        scores = jax.nn.sigmoid(outputs)
        return MultilabelMetrics(
            scores, targets, mask=mask, weights=weights, threshold=self.threshold
        )

    def predictions(self, outputs: Array) -> Array:
        return jax.nn.sigmoid(outputs)


class MultilabelClassificationExperiment(SupervisedExperiment[MultilabelTask]):
    """`MultilabelClassificationExperiment(model, optax.adam(3e-4), num_labels=5)`: several labels.

    A batch is as in `ClassificationExperiment`. Labels have shape [n, num_labels], each 0 or 1
    (integers or booleans), independent of each other. The model returns logits of this shape. The
    loss is the mean binary cross-entropy. Steps return `MultilabelMetrics` with this loss.

    Args:
        num_labels: number of labels.
        class_weights: weight of each label in the loss, shape [num_labels].
        model, optimizer, seed, sample_input, threshold, label_smoothing, loss, metrics,
            micro_batches: as in `BinaryClassificationExperiment`.

    Raises:
        ValueError, TypeError, DataError: as `ClassificationExperiment`.
    """

    @keywords_explained
    def __init__(
        self,
        model: Adaptable,
        optimizer: Adaptable,
        num_labels: int,
        *,
        seed: int | Array = 0,
        threshold: float = 0.5,
        label_smoothing: float = 0.0,
        class_weights: ArrayLike | None = None,
        **options: Unpack[Options],
    ) -> None:
        num_labels = whole("num_labels", num_labels)
        threshold = probability("threshold", threshold)
        smoothing = check_smoothing(label_smoothing, options.get("loss"))
        weights = check_weights(class_weights, num_labels)
        task = MultilabelTask(weights, num_labels, threshold, smoothing)
        super().__init__(model, optimizer, task, seed=seed, **options)


def _logits(outputs: ModelOutputs, *shape: int) -> Array:
    must = f"the model must give logits of shape {list(shape)}"
    return of_shape(outputs, shape, must, ", or num_classes")


def _weights_of(
    class_weights: Array | None, labels: Array, mask: AnyArray | None
) -> AnyArray | None:
    """The weight of each example's loss, by its class; 0 for masked examples."""
    if class_weights is None:
        return mask
    # Boolean labels would select weights by a mask.
    weights = class_weights[labels.astype(jnp.int32)]
    return weights if mask is None else jnp.where(mask, weights, 0)


def _check_zeros_and_ones(y: np.ndarray) -> None:
    bad = y[(y != 0) & (y != 1)]
    if bad.size:
        raise DataError(
            f"{bad.size} of {y.size} labels are neither 0 nor 1, such as {bad[0]}"
            f"{_hints.binary_values_hint(y)}"
        )
