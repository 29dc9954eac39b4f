"""Metrics of classification into two classes."""

from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import positive_or_none, probability, switch, whole
from solstice._sums import Counts, at_least_float32
from solstice._types import AnyArray
from solstice.metrics._areas import areas, in_bins, place_of_logits, place_of_probabilities
from solstice.metrics._bases import (
    Additive,
    Growing,
    as_stored,
    divide,
    for_compute,
    has_nan,
    scores_of,
)
from solstice.metrics._counting import as_weights, count, count_examples, weighing
from solstice.metrics._targets import check_pair, zeros_and_ones
from solstice.metrics._weights import WeightedCounts, exact_of, sums_of


class BinaryMetrics(Additive):
    """`BinaryMetrics(probabilities, labels, mask=mask)`: metrics of two classes in fixed memory.

    `compute()` returns the values below. An example is predicted positive if its score is at least
    `threshold`.

    - "accuracy", "precision", "recall", "specificity", "f1", "balanced_accuracy" (over the classes
      present), "matthews_corrcoef": as in scikit-learn with `zero_division=0`;
    - "f2" with `beta=2`, "f0.5" with `beta=0.5`: scikit-learn's `fbeta_score`;
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
        beta: adds "f<beta>", the F-score in which recall weighs `beta` times as much as precision.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, `num_bins` is below 1, or metrics of another `threshold`,
            `num_bins` or `beta` are merged.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    """"positives" and "negatives": number of examples in each bin, shape [num_bins]."""
    threshold: float = eqx.field(static=True)
    num_bins: int = eqx.field(static=True)
    beta: float | None = eqx.field(static=True)

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
        beta: float | None = None,
    ) -> None:
        self.beta = positive_or_none("beta", beta)
        self.threshold = threshold = probability("threshold", threshold)
        self.num_bins = num_bins = whole("num_bins", num_bins)
        check_pair(scores, targets, 1, switch("from_logits", from_logits))
        scores, (positive, negative) = at_least_float32(scores), zeros_and_ones(targets)
        given, shares = as_weights(mask, weights, scores.shape)
        nan = has_nan(scores)
        counts = given & (positive | negative)
        guessed = (jax.nn.sigmoid(scores) if from_logits else scores) >= threshold
        curves = counts & ~nan
        place = place_of_logits(scores) if from_logits else place_of_probabilities(scores)
        self.counts = sums_of(
            {
                **in_bins(place, jnp.asarray(positive), curves, num_bins, shares),
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
        scores = scores_of(xp, m.right_positives, guessed, m.num_positive, self.beta)
        specificity = divide(xp, m.right_negatives, m.num_negative)
        total = m.num_positive + m.num_negative
        there = xp.where(m.num_positive > 0, 1.0, 0.0) + xp.where(m.num_negative > 0, 1.0, 0.0)
        return {
            "accuracy": divide(xp, m.right_positives + m.right_negatives, total),
            "precision": scores["precision"],
            "recall": scores["recall"],
            "specificity": specificity,
            **{name: score for name, score in scores.items() if name.startswith("f")},
            "balanced_accuracy": divide(xp, scores["recall"] + specificity, there),
            "matthews_corrcoef": _correlation(
                xp, m.right_positives, guessed, m.num_positive, total
            ),
            **areas(xp, m.positives[::-1], m.negatives[::-1]),
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
            **areas(np, positives, negatives),
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


def _correlation(
    xp: ModuleType, right: AnyArray, guessed: AnyArray, positive: AnyArray, total: AnyArray
) -> AnyArray:
    """Correlation of Matthews (1975), from shares, because products of counts overflow."""
    share = [divide(xp, number, total) for number in (right, guessed, positive)]
    spread = share[1] * (1 - share[1]) * share[2] * (1 - share[2])
    # Rounding may make `spread` negative.
    return divide(xp, share[0] - share[1] * share[2], xp.sqrt(xp.maximum(spread, 0.0)))
