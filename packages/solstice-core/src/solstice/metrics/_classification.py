"""Metrics of classification into one of several classes."""

from types import ModuleType, SimpleNamespace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import classes, positive_or_none, real, switch, whole
from solstice._hints import predictions_hint
from solstice._sums import Counts, Totals, at_least_float32
from solstice._types import AnyArray
from solstice.metrics._bases import (
    Additive,
    as_classes,
    averaged,
    divide,
    for_compute,
    has_nan,
    highest,
    scores_of,
)
from solstice.metrics._counting import as_weights, count, count_examples, tally, times
from solstice.metrics._weights import WeightedCounts, exact_of, sums_of


class ClassificationMetrics(Additive):
    """`ClassificationMetrics(preds, labels, loss, num_classes=10)`: loss, accuracy, F1 and others.

    `compute()` returns the values below over all merged examples. They equal scikit-learn's
    `accuracy_score` and `classification_report` with `labels=range(num_classes)` and
    `zero_division=0`.

    - "loss": the mean over examples;
    - "accuracy": the fraction of correct predictions;
    - "top_5_accuracy" with `top_k=5`: the fraction with the label among the 5 highest scores;
    - "balanced_accuracy": the mean recall over the classes present among the labels;
    - "cohen_kappa", "matthews_corrcoef": agreement beyond chance, from -1 to 1; 0 if undefined,
      as when all labels and predictions are of one class;
    - "precision_macro", "recall_macro", "f1_macro": the mean over classes;
    - "precision_weighted", ...: the mean weighted by each class's number of labels;
    - "precision_class_0", "recall_class_0", "f1_class_0", ...: each class;
    - "f2_macro", ... with `beta=2`, "f0.5_macro", ... with `beta=0.5`: scikit-learn's
      `fbeta_score`, with the same averages, and of each class;
    - "specificity_macro", ... with `specificity=True`: the fraction of the examples of other
      classes that are predicted as another class, with the same averages, and of each class;
    - "num_out_of_range": number of labels outside [0, num_classes);
    - "num_nan": number of examples with a NaN prediction or score; they count as wrong.

    An example with a label or prediction out of range counts as wrong: it lowers the accuracy and,
    if its other value is in range, the precision or recall of that class. For "cohen_kappa" and
    "matthews_corrcoef", out-of-range values form one more class, which is never correct. Counts are
    exact up to 2^63 examples. Memory is six integers per class; `compute` returns three values per
    class. With weights, counts are sums of weights, except "num_out_of_range" and "num_nan".

    Args:
        preds: predicted classes, shape [n], of any real dtype; or scores, shape [n, num_classes],
            in which case the class with the highest score is the prediction.
        targets: labels, integers of shape [n].
        loss: the mean loss of these examples, a scalar; or the loss of each, shape [n]. NaN
            affects only "loss".
        num_classes: number of classes, a Python int of 1 or more.
        mask: true for examples that count, boolean of shape [n]; all by default. A scalar `loss`
            is the mean over these.
        weights: the weight of each example, real numbers of 0 or more, shape [n]; 1 by default. A
            weight of 0 is as a false mask; a negative or NaN weight makes the values NaN.
        top_k: adds "top_<k>_accuracy", 1 to num_classes. Scores equal to the label's count as
            higher.
        beta: adds "f<beta>", the F-score in which recall weighs `beta` times as much as precision.
        specificity: adds "specificity".

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match; `top_k` is given without scores, or is not in
            [1, num_classes]; or metrics of different options are merged, or of examples with
            weights and without.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    """With weights, "predicted" and "labelled" have one more class, of values out of range."""
    loss: Totals
    num_classes: int = eqx.field(static=True)
    top_k: int | None = eqx.field(static=True)
    beta: float | None = eqx.field(static=True)
    specificity: bool = eqx.field(static=True)

    def __init__(
        self,
        preds: ArrayLike,
        targets: ArrayLike,
        loss: ArrayLike,
        num_classes: int,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        top_k: int | None = None,
        beta: float | None = None,
        specificity: bool = False,
    ) -> None:
        given = preds, targets
        self.num_classes = num_classes = whole("num_classes", num_classes)
        self.top_k = top_k = None if top_k is None else whole("top_k", top_k, most=num_classes)
        self.beta = positive_or_none("beta", beta)
        self.specificity = switch("specificity", specificity)
        preds = jnp.asarray(real("preds", preds))
        targets = jnp.asarray(classes("targets", targets))
        loss = jnp.asarray(real("loss", loss))
        scores = preds
        are_scores = preds.ndim == 2 and targets.ndim == 1 and preds.shape[1] == num_classes
        nan = has_nan(preds)
        if are_scores:
            preds, nan = highest(preds), jnp.any(nan, axis=-1)
        elif top_k is not None and targets.ndim == 1:
            raise ValueError(
                f"top_k needs a score for each class, of shape [n, {num_classes}]; preds are of "
                f"shape {list(preds.shape)}"
            )
        if targets.ndim != 1 or preds.shape != targets.shape:
            raise ValueError(
                f"expected preds of shape [n] or [n, {num_classes}] and targets of shape [n]; "
                f"they are {list(preds.shape)} and {list(targets.shape)}"
                f"{predictions_hint(*given)}"
            )
        if loss.shape not in ((), targets.shape):
            raise ValueError(
                f"loss must be a scalar, the mean over the batch, or of shape "
                f"{list(targets.shape)}; it is of shape {list(loss.shape)}"
            )
        counts, shares = as_weights(mask, weights, targets.shape)
        nan &= counts
        preds, targets = as_classes(preds, num_classes), as_classes(targets, num_classes)
        # Bin num_classes is for invalid values, num_classes + 1 for masked examples, so that a
        # masked example is never counted as out of range.
        preds = jnp.where(counts, jnp.where(nan, num_classes, preds), num_classes + 1)
        targets = jnp.where(counts, targets, num_classes + 1)
        correct = jnp.where(preds == targets, targets, num_classes)
        # The last bin, of invalid values, is a count minus all others, exact only for integers.
        bins = num_classes if shares is None else num_classes + 1
        numbers = {
            "correct": tally(correct, num_classes, weights=shares),
            "predicted": tally(preds, bins, weights=shares),
            "labelled": tally(targets, bins, weights=shares),
            "count": count(counts, weights=shares),
            "out_of_range": count_examples(targets == num_classes, shares),
            "num_nan": count_examples(nan, shares),
        }
        if top_k is not None:
            inside = counts & ~nan & (targets < num_classes)
            is_top = inside & (_rank(scores, targets) < top_k)
            numbers["in_top_k"] = count(is_top, weights=shares)
        if specificity:
            wrong = jnp.where(preds == targets, num_classes, preds)
            numbers["wrong"] = tally(wrong, num_classes, weights=shares)
        self.counts = sums_of(numbers)
        self.loss = Totals({"loss_sum": _sum_of_losses(loss, counts, shares)})

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["accuracy"]`: floats by name and two integer counts."""
        m, xp = for_compute(self)
        exact = exact_of(self.counts)
        predicted, labelled = m.predicted[: self.num_classes], m.labelled[: self.num_classes]
        by_class = scores_of(xp, m.correct, predicted, labelled, self.beta)
        if self.specificity:
            by_class["specificity"] = _specificity(xp, m)
        top_k = {}
        if self.top_k is not None:
            top_k[f"top_{self.top_k}_accuracy"] = divide(xp, m.in_top_k, m.count)
        return {
            "loss": divide(xp, m.loss_sum, m.count),
            "accuracy": divide(xp, m.correct.sum(0), m.count),
            **top_k,
            "balanced_accuracy": divide(
                xp, by_class["recall"].sum(0), xp.where(labelled > 0, 1.0, 0.0).sum(0)
            ),
            **_agreement(xp, m),
            **averaged(xp, by_class, labelled, "class"),
            "num_out_of_range": exact["out_of_range"],
            "num_nan": exact["num_nan"],
        }


def _specificity(xp: ModuleType, m: SimpleNamespace) -> AnyArray:
    """The fraction of the labels of other classes, or out of range, not taken for each class."""
    labelled = _with_out_of_range(xp, m, m.labelled)
    # Exactly 0 without other classes, which the weight of all examples would not give.
    others = labelled.sum(0) - labelled[: len(m.correct)]
    return divide(xp, xp.maximum(others - m.wrong, 0.0), others)


def _agreement(xp: ModuleType, m: SimpleNamespace) -> dict[str, Any]:
    """Kappa of Cohen (1960), and the correlation of several classes of Gorodkin (2004).

    Out-of-range values are one more class, which is never correct.
    """
    shares = [_shares(xp, m, counts) for counts in (m.predicted, m.labelled)]
    right = divide(xp, m.correct.sum(0), m.count)
    chance = (shares[0] * shares[1]).sum(0)
    spread = (1 - (shares[0] ** 2).sum(0)) * (1 - (shares[1] ** 2).sum(0))
    beyond = right - chance
    return {
        "cohen_kappa": divide(xp, beyond, xp.where(chance < 1, 1 - chance, 0.0)),
        # Rounding may make `spread` negative.
        "matthews_corrcoef": divide(xp, beyond, xp.sqrt(xp.maximum(spread, 0.0))),
    }


def _shares(xp: ModuleType, m: SimpleNamespace, counts: AnyArray) -> AnyArray:
    """The share of each class, and of values out of range."""
    counts = _with_out_of_range(xp, m, counts)
    # The sum of these weights, since another sum of all weights may differ in the last digit, so
    # that the share of a single class were not exactly 1.
    return divide(xp, counts, counts.sum(0))


def _with_out_of_range(xp: ModuleType, m: SimpleNamespace, counts: AnyArray) -> AnyArray:
    """The number of each class, and last of values out of range."""
    if len(counts) > len(m.correct):
        return counts
    return xp.concatenate([counts, (m.count - counts.sum(0))[None]])


def _sum_of_losses(loss: Array, counts: Array, weights: Array | None) -> Array:
    losses = at_least_float32(loss)
    if losses.ndim == 0:
        number = count(counts, weights=weights)  # the mean of no examples is often NaN
        return jnp.where(number > 0, losses * number.astype(losses.dtype), 0)
    return jnp.sum(jnp.where(counts, times(losses, weights), 0))


def _rank(scores: Array, targets: Array) -> Array:
    """The number of other scores in each row that are at least as high as the label's score."""
    labels = jnp.clip(targets, 0, scores.shape[1] - 1)
    own = jnp.take_along_axis(scores, labels[:, None], axis=1)
    return count(scores >= own, axis=1) - 1
