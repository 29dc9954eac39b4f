"""Metrics of classification into two classes."""

from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import probability, real, switch, whole
from solstice._hints import pair_hint
from solstice._sums import Counts, at_least_float32
from solstice._types import AnyArray
from solstice.metrics._bases import (
    Additive,
    Growing,
    as_stored,
    divide,
    for_compute,
    has_nan,
    scores_of,
)
from solstice.metrics._counting import as_weights, count, count_examples, tally, weighing
from solstice.metrics._weights import WeightedCounts, exact_of, sums_of


class BinaryMetrics(Additive):
    """`BinaryMetrics(probabilities, labels, mask=mask)`: metrics of two classes in fixed memory.

    `compute()` returns the values below. An example is predicted positive if its score is at least
    `threshold`.

    - "accuracy", "precision", "recall", "specificity", "f1", "balanced_accuracy" (over the classes
      present), "matthews_corrcoef": as in scikit-learn with `zero_division=0`;
    - "roc_auc", "average_precision": as in scikit-learn, for scores rounded to `num_bins` bins of
      equal width in sigmoid(logit / 4), which separate the scores of rare and saturated classes.
      `BinaryCurves` is exact;
    - "num_out_of_range": number of labels that are neither 0 nor 1, such as -1, 0.9 or NaN. These
      examples are excluded from everything except "num_nan";
    - "num_nan": number of NaN scores. They count as wrong, and are excluded from the curves.

    Undefined values, such as the ROC-AUC of a single class, are 0.

    Prefer logits to probabilities: in float32 the probability of every logit above 18 is 1, so the
    curves lose their order. Logits above 25 share a bin, as do logits below -25.

    Args:
        scores: probabilities of the positive class, in [0, 1], shape [n]; for the curves, values
            outside are clipped. With `from_logits=True`, logits.
        targets: labels, each 0 or 1, of any real dtype or boolean, shape [n].
        mask: true for examples that count, boolean of shape [n]; all by default.
        weights: the weight of each example, as in `ClassificationMetrics`.
        threshold: the lowest probability of a positive prediction, in [0, 1].
        num_bins: number of bins for the curves, 1 or more.
        from_logits: whether `scores` are logits.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, `num_bins` is below 1, or metrics of another `threshold`
            or `num_bins` are merged.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    """"positives" and "negatives": number of examples in each bin, shape [num_bins]."""
    threshold: float = eqx.field(static=True)
    num_bins: int = eqx.field(static=True)

    def __init__(
        self,
        scores: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        threshold: float = 0.5,
        num_bins: int = 512,
        from_logits: bool = False,
    ) -> None:
        self.threshold = threshold = probability("threshold", threshold)
        self.num_bins = num_bins = whole("num_bins", num_bins)
        check_pair(scores, targets, 1, switch("from_logits", from_logits))
        scores, (positive, negative) = at_least_float32(scores), zeros_and_ones(targets)
        given, shares = as_weights(mask, weights, scores.shape)
        nan = has_nan(scores)
        counts = given & (positive | negative)
        guessed = (jax.nn.sigmoid(scores) if from_logits else scores) >= threshold
        curves = counts & ~nan
        place = jnp.where(nan, 0, _place(scores, from_logits)).astype(jnp.float32)
        bins = jnp.clip(jnp.floor(place * num_bins), 0, num_bins - 1).astype(jnp.int32)
        both = tally(jnp.where(positive, bins, bins + num_bins), 2 * num_bins, curves, shares)
        self.counts = sums_of(
            {
                "positives": both[:num_bins],
                "negatives": both[num_bins:],
                "right_positives": count(curves & positive & guessed, weights=shares),
                "right_negatives": count(curves & negative & ~guessed, weights=shares),
                "num_positive": count(counts & positive, weights=shares),
                "num_negative": count(counts & negative, weights=shares),
                "out_of_range": count_examples(given & ~counts, shares),
                "num_nan": count_examples(given & nan, shares),
            }
        )

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["roc_auc"]`: floats by name, and two integer counts."""
        m, xp = for_compute(self)
        exact = exact_of(self.counts)
        wrong_positives = m.num_negative - m.right_negatives
        guessed = m.right_positives + wrong_positives
        scores = scores_of(xp, m.right_positives, guessed, m.num_positive)
        specificity = divide(xp, m.right_negatives, m.num_negative)
        total = m.num_positive + m.num_negative
        there = xp.where(m.num_positive > 0, 1.0, 0.0) + xp.where(m.num_negative > 0, 1.0, 0.0)
        return {
            "accuracy": divide(xp, m.right_positives + m.right_negatives, total),
            "precision": scores["precision"],
            "recall": scores["recall"],
            "specificity": specificity,
            "f1": scores["f1"],
            "balanced_accuracy": divide(xp, scores["recall"] + specificity, there),
            "matthews_corrcoef": _correlation(
                xp, m.right_positives, guessed, m.num_positive, total
            ),
            **_areas(xp, m.positives[::-1], m.negatives[::-1]),
            "num_out_of_range": exact["out_of_range"],
            "num_nan": exact["num_nan"],
        }


class BinaryCurves(Growing):
    """`BinaryCurves(scores, labels)`: exact ROC-AUC, average precision and curves.

    `compute()` returns "roc_auc" and "average_precision" as in scikit-learn, or 0 if undefined;
    "num_out_of_range", the number of labels that are neither 0 nor 1; and "num_nan", the number of
    NaN scores. Both kinds of examples are excluded. It keeps all scores, and is merged outside the
    compiled step; `BinaryMetrics` uses fixed memory.

    Outside `jax.jit`, NumPy's float64 scores stay float64. JAX's scores are float32 without x64,
    in which the probability of every logit above 18 is 1: prefer logits.

    Args:
        scores: a higher score is more likely positive; shape [n], of any range.
        targets: labels, each 0 or 1, of any real dtype or boolean, shape [n].
        mask: true for examples that count, boolean of shape [n]; all by default.
        weights: the weight of each example, as in `ClassificationMetrics`.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or metrics with and without weights are merged.
    """

    scores: AnyArray
    targets: Array
    """1 for positive, 0 for negative, 2 for invalid labels; int8, to save memory."""
    mask: Array
    weights: Array | None

    def __init__(
        self,
        scores: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> None:
        check_pair(scores, targets, 1)
        self.scores, (positive, negative) = as_stored(scores), zeros_and_ones(targets)
        self.targets = jnp.where(positive, 1, jnp.where(negative, 0, 2)).astype(jnp.int8)
        counts, self.weights = as_weights(mask, weights, self.scores.shape)
        self.mask = weighing(counts, self.weights)

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["roc_auc"]`: floats and two integer counts. Not under `jax.jit`."""
        scores, targets, mask, _ = self._on_host()
        _, positives, negatives = self._steps()
        return {
            **_areas(np, positives, negatives),
            "num_out_of_range": (mask & (targets == 2)).sum(),
            "num_nan": (mask & np.isnan(scores)).sum(),
        }

    def roc_curve(self) -> tuple[Any, Any, Any]:
        """`fpr, tpr, thresholds = curves.roc_curve()`: float64 arrays, from (0, 0) to (1, 1).

        Thresholds decrease from infinity. If a class is absent, its rate is 0.
        """
        thresholds, positives, negatives = self._steps()
        rates = [
            np.insert(divide(np, counts.cumsum(), counts.sum()), 0, 0.0)
            for counts in (negatives, positives)
        ]
        return rates[0], rates[1], np.insert(thresholds, 0, np.inf)

    def precision_recall_curve(self) -> tuple[Any, Any, Any]:
        """`precision, recall, thresholds = curves.precision_recall_curve()`: float64 arrays.

        Thresholds decrease. Recall increases to 1, or is 0 without positives.
        """
        thresholds, positives, negatives = self._steps()
        right, wrong = positives.cumsum(), negatives.cumsum()
        return divide(np, right, right + wrong), divide(np, right, positives.sum()), thresholds

    def _steps(self) -> tuple[Any, Any, Any]:
        """The distinct scores, highest first, and the positives and negatives at each."""
        scores, targets, mask, weights = self._on_host()
        kept = mask & (targets < 2) & ~np.isnan(scores)
        targets = targets[kept]
        values, at = np.unique(scores[kept], return_inverse=True)

        def counts(label: int) -> Any:
            own = targets == label
            shares = None if weights is None else weights[kept][own]
            return np.bincount(at[own], shares, len(values))[::-1]

        return values[::-1], counts(1), counts(0)

    def _on_host(self) -> tuple[Any, Any, Any, Any]:
        """The scores in float64, the targets, the mask and the weights or None."""
        fields = self.scores, self.targets, self.mask, self.weights
        scores, targets, mask, weights = jax.device_get(fields)  # one transfer
        return np.asarray(scores, np.float64), np.asarray(targets), np.asarray(mask), weights


def check_pair(scores: ArrayLike, targets: ArrayLike, ndim: int, from_logits: bool = False) -> None:
    shapes = np.shape(real("scores", scores)), np.shape(real("targets", targets))
    expected = "[n]" if ndim == 1 else "[n, num_labels]"
    if len(shapes[0]) != ndim or shapes[0] != shapes[1] or 0 in shapes[0][1:]:
        raise ValueError(
            f"expected scores and targets of shape {expected}; they are of shape "
            f"{list(shapes[0])} and {list(shapes[1])}"
            f"{pair_hint(scores, targets, from_logits) if ndim == 1 else ''}"
        )


def zeros_and_ones(targets: ArrayLike) -> tuple[Any, Any]:
    """Where labels are 1, and where they are 0; invalid labels are in neither."""
    labels = as_stored(targets)
    return (labels, ~labels) if labels.dtype == bool else (labels == 1, labels == 0)


def _place(scores: Array, from_logits: bool) -> Array:
    """The position of a score for binning: sigmoid(logit / 4), in [0, 1] and monotonic.

    With equal bins of the probability, nearly all scores of a rare class would share one bin.
    """
    if from_logits:
        return jax.nn.sigmoid(scores / 4)
    p = jnp.where(scores > 0, jnp.minimum(scores, 1), 0)  # a division by -0.0 would be -inf
    return 1 / (1 + jnp.sqrt(jnp.sqrt((1 - p) / p)))


def _correlation(
    xp: ModuleType, right: AnyArray, guessed: AnyArray, positive: AnyArray, total: AnyArray
) -> AnyArray:
    """Correlation of Matthews (1975), from shares, because products of counts overflow."""
    share = [divide(xp, number, total) for number in (right, guessed, positive)]
    spread = share[1] * (1 - share[1]) * share[2] * (1 - share[2])
    # Rounding may make `spread` negative.
    return divide(xp, share[0] - share[1] * share[2], xp.sqrt(xp.maximum(spread, 0.0)))


def _areas(xp: ModuleType, positives: AnyArray, negatives: AnyArray) -> dict[str, Any]:
    """Areas under the curves, from the positives and negatives at each score, highest first."""
    above, below = xp.cumsum(positives, 0), xp.cumsum(negatives, 0)
    pairs = (negatives * (above - positives / 2)).sum(0)  # a pair with equal scores counts half
    precision = divide(xp, above, above + below)
    return {
        "roc_auc": divide(xp, pairs, positives.sum(0) * negatives.sum(0)),
        "average_precision": divide(xp, (precision * positives).sum(0), positives.sum(0)),
    }
