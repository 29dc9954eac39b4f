"""Classification Experiments: one of many classes, one of two, and several labels at once."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import probability, whole
from solstice._batch import describe_batch, num_rows
from solstice._errors import DataError
from solstice._hints import (
    binary_hint,
    binary_rows_hint,
    binary_values_hint,
    class_hint,
    class_range_hint,
)
from solstice._types import Batch
from solstice.experiments._base import (
    LossFunction,
    MetricsFunction,
    OneModelExperiment,
    Options,
    shape_of,
    spread,
    without_last_axis,
)
from solstice.experiments._learner import Learner
from solstice.experiments._losses import (
    binary_cross_entropy,
    check_smoothing,
    check_weights,
    cross_entropy,
)
from solstice.metrics import BinaryMetrics, ClassificationMetrics, MultilabelMetrics


class ClassificationExperiment(OneModelExperiment):
    """`ClassificationExperiment(flax_module, optax.adam(3e-4), num_classes=10)`: a classifier.

    ```python
    exp = solstice.ClassificationExperiment(model, optax.adam(3e-4), num_classes=10)
    exp = exp.train(train_ds, num_epochs=5)
    exp.test(test_ds)["accuracy"]
    ```

    A batch is a pair `(features, labels)`, or a `solstice.data.Masked` of one. Features are an
    array or a pytree of arrays with the examples on axis 0; labels are integers of shape [n] in
    [0, num_classes). The model returns logits of shape [n, num_classes]. The loss is the mean
    softmax cross-entropy. Steps return `ClassificationMetrics` with this loss.

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
        metrics: `metrics(logits, labels, mask)`, Metrics in place of `ClassificationMetrics`. The
            mask, boolean of shape [n], is true for examples that count.
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

    learner: Learner
    class_weights: Array | None
    num_classes: int = eqx.field(static=True)
    label_smoothing: float = eqx.field(static=True)
    options: Options = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        num_classes: int = 10,
        seed: int | Array = 0,
        *,
        sample_input: Any = None,
        label_smoothing: float = 0.0,
        class_weights: ArrayLike | None = None,
        loss: LossFunction | None = None,
        metrics: MetricsFunction | None = None,
        micro_batches: int = 1,
    ) -> None:
        self.num_classes = whole("num_classes", num_classes, 2)
        self.label_smoothing = check_smoothing(label_smoothing, loss)
        self.class_weights = check_weights(class_weights, self.num_classes)
        self.options = Options(loss, metrics, micro_batches)
        self.learner = Learner(model, optimizer, seed=seed, sample_input=sample_input)

    def predict_step(self, batch: Batch) -> Array:
        """`probabilities = exp.predict_step(x)`: float, of shape [n, num_classes].

        The batch is `x` alone, or a tuple or list of `x` and labels; labels are ignored.
        """
        return jax.nn.softmax(self(self._features(batch)))

    def _check_targets(self, y: Any) -> None:
        if getattr(y, "ndim", 0) != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
            raise DataError(
                f"labels must be integers of shape [n]; they are {describe_batch(y)}{class_hint(y)}"
            )

    def _check_values(self, y: Any) -> None:
        if y.size and (y.min() < 0 or y.max() >= self.num_classes):
            bad = y[(y < 0) | (y >= self.num_classes)]
            raise DataError(
                f"{bad.size} of {y.size} labels are outside [0, {self.num_classes}), such as "
                f"{bad[0]}{class_range_hint(y, self.num_classes)}"
            )

    def _outputs(self, outputs: Any, x: Any, y: Any) -> Any:
        size = num_rows(x)
        if shape_of(outputs) != (size, self.num_classes):
            raise DataError(
                f"the model must give logits of shape [{size}, {self.num_classes}]; it gave "
                f"{describe_batch(outputs)}. Change its last layer, or num_classes"
            )
        return outputs

    def _weights(self, y: Any, mask: Any, losses: Array) -> Array | None:
        if self.class_weights is None:
            return super()._weights(y, mask, losses)
        return _of_classes(self.class_weights, y, mask, losses)

    def _usual_loss(self, outputs: Any, y: Any) -> Array:
        return cross_entropy(outputs, y, self.label_smoothing)

    def _usual_metrics(self, outputs: Any, y: Any, mask: Array) -> ClassificationMetrics:
        return ClassificationMetrics(outputs, y, 0.0, self.num_classes, mask=mask)


class BinaryClassificationExperiment(OneModelExperiment):
    """`BinaryClassificationExperiment(model, optax.adam(3e-4))`: a classifier for two classes.

    A batch is a pair `(features, labels)`, or a `solstice.data.Masked` of one. Labels have shape
    [n], each 0 or 1 (integers or booleans). The model returns the logits of class 1, of shape [n]
    or [n, 1]. The loss is the mean binary cross-entropy. Steps return `BinaryMetrics` with this
    loss.

    Args:
        threshold: in the metrics, examples with at least this probability are predicted as class 1.
        class_weights: weights of class 0 and of class 1 in the loss, shape [2].
        label_smoothing: labels become `1 - label_smoothing / 2` and `label_smoothing / 2`.
        metrics: `metrics(logits, labels, mask)`, Metrics in place of `BinaryMetrics`, such as
            `BinaryCurves` for an exact ROC-AUC.
        model, optimizer, seed, sample_input, loss, micro_batches: as in
            `ClassificationExperiment`.

    Raises:
        ValueError, TypeError, DataError: as `ClassificationExperiment`.
    """

    learner: Learner
    class_weights: Array | None
    threshold: float = eqx.field(static=True)
    label_smoothing: float = eqx.field(static=True)
    options: Options = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        *,
        seed: int | Array = 0,
        sample_input: Any = None,
        threshold: float = 0.5,
        label_smoothing: float = 0.0,
        class_weights: ArrayLike | None = None,
        loss: LossFunction | None = None,
        metrics: MetricsFunction | None = None,
        micro_batches: int = 1,
    ) -> None:
        self.threshold = probability("threshold", threshold)
        self.label_smoothing = check_smoothing(label_smoothing, loss)
        self.class_weights = check_weights(class_weights, 2)
        self.options = Options(loss, metrics, micro_batches)
        self.learner = Learner(model, optimizer, seed=seed, sample_input=sample_input)

    def predict_step(self, batch: Batch) -> Array:
        """`probabilities = exp.predict_step(x)`: of class 1, float of shape [n]."""
        return jax.nn.sigmoid(self(self._features(batch)))

    def _check_targets(self, y: Any) -> None:
        if getattr(y, "ndim", 0) != 1 or not _is_binary(y):
            raise DataError(
                f"labels must be integers or booleans of shape [n], each 0 or 1; they are "
                f"{describe_batch(y)}{binary_hint(y)}"
            )

    def _check_values(self, y: Any) -> None:
        _check_zeros_and_ones(y)

    def _outputs(self, outputs: Any, x: Any, y: Any) -> Any:
        size = num_rows(x)
        outputs = without_last_axis(outputs, size)
        if shape_of(outputs) != (size,):
            raise DataError(
                f"the model must give one logit for each example, of shape [{size}] or "
                f"[{size}, 1]; it gave {describe_batch(outputs)}. Change its last layer"
            )
        return outputs

    def _weights(self, y: Any, mask: Any, losses: Array) -> Array | None:
        if self.class_weights is None:
            return super()._weights(y, mask, losses)
        return _of_classes(self.class_weights, y, mask, losses)

    def _usual_loss(self, outputs: Any, y: Any) -> Array:
        return binary_cross_entropy(outputs, y, self.label_smoothing)

    def _usual_metrics(self, outputs: Any, y: Any, mask: Array) -> BinaryMetrics:
        return BinaryMetrics(outputs, y, mask=mask, threshold=self.threshold, from_logits=True)


class MultilabelClassificationExperiment(OneModelExperiment):
    """`MultilabelClassificationExperiment(model, optax.adam(3e-4), num_labels=5)`: several labels.

    A batch is a pair `(features, labels)`, or a `solstice.data.Masked` of one. Labels have shape
    [n, num_labels], each 0 or 1 (integers or booleans), independent of each other. The model
    returns logits of this shape. The loss is the mean binary cross-entropy. Steps return
    `MultilabelMetrics` with this loss.

    Args:
        num_labels: number of labels.
        class_weights: weight of each label in the loss, shape [num_labels].
        model, optimizer, seed, sample_input, threshold, label_smoothing, loss, metrics,
            micro_batches: as in `BinaryClassificationExperiment`.

    Raises:
        ValueError, TypeError, DataError: as `ClassificationExperiment`.
    """

    learner: Learner
    class_weights: Array | None
    num_labels: int = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    label_smoothing: float = eqx.field(static=True)
    options: Options = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        num_labels: int,
        *,
        seed: int | Array = 0,
        sample_input: Any = None,
        threshold: float = 0.5,
        label_smoothing: float = 0.0,
        class_weights: ArrayLike | None = None,
        loss: LossFunction | None = None,
        metrics: MetricsFunction | None = None,
        micro_batches: int = 1,
    ) -> None:
        self.num_labels = whole("num_labels", num_labels)
        self.threshold = probability("threshold", threshold)
        self.label_smoothing = check_smoothing(label_smoothing, loss)
        self.class_weights = check_weights(class_weights, self.num_labels)
        self.options = Options(loss, metrics, micro_batches)
        self.learner = Learner(model, optimizer, seed=seed, sample_input=sample_input)

    def predict_step(self, batch: Batch) -> Array:
        """`probabilities = exp.predict_step(x)`: of each label, float [n, num_labels]."""
        return jax.nn.sigmoid(self(self._features(batch)))

    def _check_targets(self, y: Any) -> None:
        if getattr(y, "ndim", 0) != 2 or not _is_binary(y):
            raise DataError(
                f"labels must be integers or booleans of shape [n, {self.num_labels}], each 0 or "
                f"1; they are {describe_batch(y)}{binary_rows_hint(y, self.num_labels)}"
            )
        if y.shape[1] != self.num_labels:
            raise DataError(
                f"labels must be of shape [n, {self.num_labels}]; they are {describe_batch(y)}"
            )

    def _check_values(self, y: Any) -> None:
        _check_zeros_and_ones(y)

    def _outputs(self, outputs: Any, x: Any, y: Any) -> Any:
        size = num_rows(x)
        if shape_of(outputs) != (size, self.num_labels):
            raise DataError(
                f"the model must give logits of shape [{size}, {self.num_labels}]; it gave "
                f"{describe_batch(outputs)}. Change its last layer, or num_labels"
            )
        return outputs

    def _weights(self, y: Any, mask: Any, losses: Array) -> Array | None:
        weights = super()._weights(y, mask, losses)
        if self.class_weights is None:
            return weights
        if shape_of(losses) != y.shape:
            raise DataError(
                f"class_weights weigh each label, so the loss must be of shape "
                f"{list(y.shape)}; it is {describe_batch(losses)}. Do not average over labels in "
                f"the loss, or weigh them there and leave class_weights out"
            )
        return self.class_weights if weights is None else weights * self.class_weights

    def _usual_loss(self, outputs: Any, y: Any) -> Array:
        return binary_cross_entropy(outputs, y, self.label_smoothing)

    def _usual_metrics(self, outputs: Any, y: Any, mask: Array) -> MultilabelMetrics:
        scores = jax.nn.sigmoid(outputs)
        return MultilabelMetrics(scores, y, mask=mask, threshold=self.threshold)


def _of_classes(class_weights: Array, labels: Any, mask: Any, losses: Array) -> Array:
    """The weight of each example's loss, by its class; 0 for masked examples."""
    weights = class_weights[labels.astype(jnp.int32)]
    return spread(weights if mask is None else jnp.where(mask, weights, 0), losses)


def _is_binary(y: Any) -> bool:
    return any(jnp.issubdtype(y.dtype, kind) for kind in (jnp.integer, jnp.bool_))


def _check_zeros_and_ones(y: Any) -> None:
    bad = y[(y != 0) & (y != 1)]
    if bad.size:
        raise DataError(
            f"{bad.size} of {y.size} labels are neither 0 nor 1, such as {bad[0]}"
            f"{binary_values_hint(y)}"
        )
