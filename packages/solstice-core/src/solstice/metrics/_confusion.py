"""Confusion matrix, weighted kappa and calibration error."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import classes, real, whole
from solstice._hints import class_hint, predictions_hint
from solstice._sums import Counts, Totals, at_least_float32
from solstice.metrics._bases import Additive, as_classes, divide, for_compute, has_nan, highest
from solstice.metrics._counting import as_weights, count, count_examples, tally
from solstice.metrics._weights import WeightedCounts, exact_of, sums_of, values_of


class ConfusionMatrix(Additive):
    """`ConfusionMatrix(preds, labels, num_classes=10)`: counts of each label and prediction.

    `compute()["confusion_matrix"]` is an integer array of shape [num_classes, num_classes] with
    labels as rows and predictions as columns, as in scikit-learn. Examples with a label or a
    prediction out of range, or NaN, are excluded; "num_out_of_range" is their number. Memory is
    2 `num_classes`^2 integers. With weights, the matrix has sums of weights, in floats.

    Args:
        preds: predicted classes, integers of shape [n]; or scores, shape [n, num_classes], in
            which case the class with the highest score is the prediction.
        targets: labels, integers of shape [n].
        num_classes: number of classes, 1 or more.
        mask: true for examples that count, boolean of shape [n]; all by default.
        weights: the weight of each example, as in `ClassificationMetrics`.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or metrics of different `num_classes` are merged.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    num_classes: int = eqx.field(static=True)

    def __init__(
        self,
        preds: ArrayLike,
        targets: ArrayLike,
        num_classes: int,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> None:
        self.num_classes = num_classes = whole("num_classes", num_classes)
        rows, columns, inside = _pairs(preds, targets, num_classes)
        counts, shares = as_weights(mask, weights, rows.shape)
        pairs = tally(rows * num_classes + columns, num_classes**2, counts & inside, shares)
        self.counts = sums_of(
            {
                "confusion_matrix": pairs.reshape(num_classes, num_classes),
                "num_out_of_range": count_examples(counts & ~inside, shares),
            }
        )

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["confusion_matrix"]`: the matrix and "num_out_of_range"."""
        return values_of(self.counts)


class WeightedKappa(Additive):
    """`WeightedKappa(preds, labels, num_classes=5)`: agreement of ordered classes, such as grades.

    An error counts by how many classes it is off. `compute()` returns, as scikit-learn's
    `cohen_kappa_score`, from -1 to 1 and 0 if undefined:

    - "linear_kappa": an error of two classes counts twice as much as one of a single class;
    - "quadratic_kappa": it counts four times as much;
    - "num_out_of_range": number of examples with a label or a prediction out of range, or NaN,
      which are excluded.

    `ClassificationMetrics` has Cohen's kappa without weights. Memory is six integers per class.

    Args:
        preds: predicted classes, integers of shape [n]; or scores, shape [n, num_classes], in
            which case the class with the highest score is the prediction.
        targets: labels, integers of shape [n].
        num_classes: number of classes, 1 or more.
        mask: true for examples that count, boolean of shape [n]; all by default.
        weights: the weight of each example, as in `ClassificationMetrics`.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or metrics of different `num_classes` are merged.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    """"apart": number of examples whose classes are 0, 1, ... apart, shape [num_classes]."""
    num_classes: int = eqx.field(static=True)

    def __init__(
        self,
        preds: ArrayLike,
        targets: ArrayLike,
        num_classes: int,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> None:
        self.num_classes = num_classes = whole("num_classes", num_classes)
        rows, columns, inside = _pairs(preds, targets, num_classes)
        counts, shares = as_weights(mask, weights, rows.shape)
        bins = {"labelled": rows, "predicted": columns, "apart": jnp.abs(rows - columns)}
        kept = counts & inside
        self.counts = sums_of(
            {
                **{name: tally(each, num_classes, kept, shares) for name, each in bins.items()},
                "num_out_of_range": count_examples(counts & ~inside, shares),
            }
        )

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["quadratic_kappa"]`: two floats and an integer count."""
        m, xp = for_compute(self)
        apart, labelled, predicted = (
            divide(xp, x, x.sum(0)) for x in (m.apart, m.labelled, m.predicted)
        )
        off = np.arange(self.num_classes, dtype=apart.dtype)
        found = dict[str, Any]()
        for name, cost in (("linear_kappa", off), ("quadratic_kappa", off**2)):
            every = cost[np.abs(off[:, None] - off).astype(int)]
            by_chance = xp.einsum("ij,i...,j...->...", every, labelled, predicted)
            error = divide(xp, xp.einsum("i,i...->...", cost, apart), by_chance)
            found[name] = xp.where(by_chance != 0, 1 - error, 0.0)[()]
        return {**found, "num_out_of_range": exact_of(self.counts)["num_out_of_range"]}


class CalibrationError(Additive):
    """`CalibrationError(probabilities, labels)`: difference of confidence and accuracy.

    Confidence is the probability of the predicted class. It sorts the examples into `num_bins` bins
    of equal width; in each bin, the mean confidence is compared with the accuracy (Guo et al.
    2017). `compute()` returns:

    - "expected_calibration_error": the mean difference, weighted by examples;
    - "maximum_calibration_error": the largest difference;
    - "num_out_of_range": number of labels outside [0, num_classes), which count as wrong;
    - "num_nan": number of examples with a NaN, which are excluded.

    Args:
        probabilities: shape [n, num_classes].
        targets: labels, integers of shape [n].
        mask: true for examples that count, boolean of shape [n]; all by default.
        weights: the weight of each example, as in `ClassificationMetrics`.
        num_bins: number of bins, 1 or more.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or metrics of different `num_bins` are merged.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    sums: Totals
    num_bins: int = eqx.field(static=True)

    def __init__(
        self,
        probabilities: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        num_bins: int = 15,
    ) -> None:
        num_bins = whole("num_bins", num_bins)
        given = at_least_float32(real("probabilities", probabilities))
        labels = jnp.asarray(classes("targets", targets))
        if given.ndim != 2 or labels.shape != given.shape[:1] or given.shape[1] == 0:
            raise ValueError(
                f"expected probabilities of shape [n, num_classes] and targets of shape [n]; they "
                f"are {list(given.shape)} and {list(labels.shape)}"
                f"{class_hint(targets) if labels.ndim > 1 else ''}"
            )
        counts, shares = as_weights(mask, weights, labels.shape)
        nan = has_nan(given, axis=1)
        labels = as_classes(labels, given.shape[1])
        out_of_range = count_examples(counts & (labels == given.shape[1]), shares)
        num_nan = count_examples(counts & nan, shares)
        counts &= ~nan
        confidence = jnp.where(counts, jnp.max(given, axis=1), 0).astype(jnp.float32)
        # In float32, like the confidence: with x64, 0.7 of float32 is below an edge of 0.7.
        edges = np.arange(1, num_bins, dtype=np.float32) / np.float32(num_bins)
        bins = count(confidence[:, None] >= edges[None, :], axis=1)
        right = counts & (highest(given) == labels)
        self.sums = Totals({"confidence": tally(bins, num_bins, confidence, shares)})
        tallies = {
            "right": tally(bins, num_bins, right, shares),
            "count": tally(bins, num_bins, counts, shares),
        }
        self.counts = sums_of({**tallies, "out_of_range": out_of_range, "num_nan": num_nan})
        self.num_bins = num_bins

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["expected_calibration_error"]`: floats and two integer counts."""
        m, xp = for_compute(self)
        exact = exact_of(self.counts)
        apart = xp.abs(divide(xp, m.confidence - m.right, m.count))
        return {
            "expected_calibration_error": (apart * divide(xp, m.count, m.count.sum(0))).sum(0),
            "maximum_calibration_error": apart.max(0),
            "num_out_of_range": exact["out_of_range"],
            "num_nan": exact["num_nan"],
        }


def _pairs(preds: ArrayLike, targets: ArrayLike, num_classes: int) -> tuple[Array, Array, Array]:
    """Labels, predictions, and where both are classes."""
    guessed = jnp.asarray(real("preds", preds))
    labels = jnp.asarray(classes("targets", targets))
    nan = has_nan(guessed)
    if guessed.ndim == 2 and guessed.shape[1] == num_classes:
        guessed, nan = highest(guessed), jnp.any(nan, axis=-1)
    if labels.ndim != 1 or guessed.shape != labels.shape:
        raise ValueError(
            f"with num_classes={num_classes}, preds must be of shape [n] or "
            f"[n, {num_classes}], and targets of shape [n]; they are {list(guessed.shape)} and "
            f"{list(labels.shape)}{predictions_hint(preds, targets)}"
        )
    rows, columns = as_classes(labels, num_classes), as_classes(guessed, num_classes)
    return rows, columns, (rows < num_classes) & (columns < num_classes) & ~nan
