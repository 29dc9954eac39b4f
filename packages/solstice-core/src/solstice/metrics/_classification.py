"""Metrics of single-label classification."""

from typing import Any, Self, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from solstice._metrics import Metrics, at_least_float32

_FEW_CLASSES = 128
"""Up to so many classes, comparing with each is faster than a scatter, and shards anywhere."""


class ClassificationMetrics(Metrics):
    """`ClassificationMetrics(preds, labels, loss, num_classes=10)`: loss, accuracy, F1 and more.

    `compute()` gives, as scikit-learn's `accuracy_score` and `classification_report` with
    `labels=range(num_classes)` and `zero_division=0` do over all examples merged:

    - "loss": the mean over examples;
    - "accuracy": the fraction of examples whose prediction is the label;
    - "precision_macro", "recall_macro", "f1_macro": the mean over classes;
    - "precision_weighted", ...: the mean weighted by each class's number of labels;
    - "precision_class_0", "recall_class_0", "f1_class_0", ...: each class;
    - "num_out_of_range": how many labels were outside [0, num_classes).

    A label or prediction out of range counts as an example that is wrong: it lowers the accuracy
    and, where its other half is in range, that class's precision or recall. Counts are exact up
    to 2^31 examples. Memory is three integers a class.

    Args:
        preds: predicted classes, shape [n], of any real dtype; or a score for each class, shape
            [n, num_classes], whose maximum is the prediction.
        targets: labels, integers of shape [n].
        loss: the mean loss of these examples, a scalar; or the loss of each, shape [n]. NaN
            spoils "loss" alone.
        num_classes: number of classes, a Python int of 1 or more.

    Raises:
        ValueError: shapes do not match, or metrics of different `num_classes` are merged.
    """

    correct: Array
    predicted: Array
    labelled: Array
    count: Array
    out_of_range: Array
    loss_sum: Array
    num_classes: int = eqx.field(static=True)

    def __init__(
        self, preds: ArrayLike, targets: ArrayLike, loss: ArrayLike, num_classes: int
    ) -> None:
        preds, targets, loss = jnp.asarray(preds), jnp.asarray(targets), jnp.asarray(loss)
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more; it is {num_classes}")
        if preds.ndim == 2 and targets.ndim == 1 and preds.shape[1] == num_classes:
            preds = jnp.argmax(preds, axis=-1)
        if targets.ndim != 1 or preds.shape != targets.shape:
            raise ValueError(
                f"expected preds of shape [n] or [n, {num_classes}] and targets of shape [n]; "
                f"they are {list(preds.shape)} and {list(targets.shape)}. One-hot labels become "
                f"classes by `jnp.argmax(labels, axis=-1)`"
            )
        if loss.shape not in ((), targets.shape):
            raise ValueError(
                f"loss must be a scalar, the mean over the batch, or of shape "
                f"{list(targets.shape)}; it is of shape {list(loss.shape)}"
            )
        preds, targets = _classes(preds, num_classes), _classes(targets, num_classes)
        size = targets.shape[0]
        self.correct = _count(jnp.where(preds == targets, targets, num_classes), num_classes)
        self.predicted = _count(preds, num_classes)
        self.labelled = _count(targets, num_classes)
        self.count = jnp.asarray(size, jnp.int32)
        self.out_of_range = jnp.sum(targets == num_classes, dtype=jnp.int32)
        losses = at_least_float32(loss)
        self.loss_sum = jnp.sum(losses) if losses.ndim else losses * size
        self.num_classes = num_classes

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: the metrics of both sets of examples."""
        if self.num_classes != other.num_classes:
            raise ValueError(
                f"cannot merge metrics of {self.num_classes} and of {other.num_classes} classes"
            )
        return jax.tree.map(jnp.add, self, other)

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["accuracy"]`: float32 scalars by name, and one integer count."""
        scores = cast("tuple[Any, Any, Any, Any]", _scores(self))
        if not isinstance(self.count, Tracer):
            scores = jax.device_get(scores)
        loss, accuracy, by_class, weights = scores
        named: dict[str, Any] = dict(zip(("precision", "recall", "f1"), by_class, strict=True))
        macro = {f"{name}_macro": values.mean() for name, values in named.items()}
        weighted = {f"{name}_weighted": (values * weights).sum() for name, values in named.items()}
        each = {
            f"{name}_class_{index}": values[index]
            for index in range(self.num_classes)
            for name, values in named.items()
        }
        counts = {"num_out_of_range": self.out_of_range}
        return {"loss": loss, "accuracy": accuracy, **macro, **weighted, **each, **counts}


@jax.jit
def _scores(m: ClassificationMetrics) -> tuple[Array, Array, tuple[Array, Array, Array], Array]:
    """Loss, accuracy, each class's precision, recall and F1, and each class's share of labels."""
    correct = m.correct.astype(jnp.float32)
    predicted = m.predicted.astype(jnp.float32)
    labelled = m.labelled.astype(jnp.float32)
    count = m.count.astype(jnp.float32)
    by_class = (
        _divide(correct, predicted),
        _divide(correct, labelled),
        _divide(2 * correct, predicted + labelled),
    )
    loss = m.loss_sum / count.astype(m.loss_sum.dtype)
    accuracy = jnp.sum(m.correct).astype(jnp.float32) / count
    return loss, accuracy, by_class, _divide(labelled, jnp.sum(m.labelled).astype(jnp.float32))


def _classes(values: Array, num_classes: int) -> Array:
    """As int32 in [0, num_classes]; the last stands for all that is no class."""
    if values.dtype.itemsize < 4 and not jnp.issubdtype(values.dtype, jnp.inexact):
        values = values.astype(jnp.int32)  # in int8, a num_classes of 300 would be 44
    inside = (values >= 0) & (values < num_classes)
    if jnp.issubdtype(values.dtype, jnp.inexact):
        inside &= values == jnp.floor(values)
    return jnp.where(inside, values, 0).astype(jnp.int32) + jnp.where(inside, 0, num_classes)


def _count(classes: Array, num_classes: int) -> Array:
    """How often each class occurs, int32 of shape [num_classes]."""
    if num_classes <= _FEW_CLASSES:
        every = jnp.arange(num_classes, dtype=jnp.int32)
        return jnp.sum(classes[:, None] == every[None, :], axis=0, dtype=jnp.int32)
    return jnp.zeros(num_classes, jnp.int32).at[classes].add(1, mode="drop")


def _divide(numerator: Array, denominator: Array) -> Array:
    """The quotient, and 0 where nothing is divided: scikit-learn's `zero_division=0`."""
    return jnp.where(denominator > 0, numerator / jnp.maximum(denominator, 1), 0)
