"""Areas under the ROC and precision-recall curves, of scores in bins."""

from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import classes, real, switch, whole
from solstice._hints import class_hint
from solstice._sums import Counts, at_least_float32
from solstice._types import AnyArray
from solstice.metrics._bases import (
    Additive,
    as_classes,
    averaged,
    divide,
    for_compute,
    has_nan,
    highest,
)
from solstice.metrics._counting import (
    as_weights,
    count,
    count_examples,
    tally,
    tally_columns,
    weighing,
)
from solstice.metrics._targets import check_pair, zeros_and_ones
from solstice.metrics._weights import WeightedCounts, exact_of, sums_of


class MulticlassAUC(Additive):
    """`MulticlassAUC(probabilities, labels)`: ROC-AUC and average precision of several classes.

    Each class is compared with the rest. `compute()` returns the values below, as scikit-learn's
    `roc_auc_score` with `multi_class="ovr"` and `average_precision_score`, for probabilities in the
    bins of `BinaryMetrics`:

    - "roc_auc_macro": the mean over the classes that some examples have and others do not, since
      the ROC-AUC of the rest is undefined; "average_precision_macro": the mean over all classes,
      with 0 for a class without labels;
    - "roc_auc_weighted", "average_precision_weighted": the mean weighted by each class's number
      of labels;
    - "roc_auc_micro", "average_precision_micro": of all pairs of an example and a class;
    - "roc_auc_class_0", "average_precision_class_0", ...: each class; 0 if undefined;
    - "num_out_of_range": number of labels outside [0, num_classes);
    - "num_nan": number of examples with a NaN score. Both kinds of examples are excluded.

    Memory is four integers for each bin and class. With `confidence=` it is needed for each
    example: give fewer bins.

    Args:
        scores: probabilities, in [0, 1], shape [n, num_classes]; with `from_logits=True`, logits,
            of which the softmax is taken. Prefer logits: see `BinaryMetrics`.
        targets: labels, integers of shape [n].
        mask: true for examples that count, boolean of shape [n]; all by default.
        weights: the weight of each example, as in `ClassificationMetrics`.
        num_bins: number of bins, 1 or more.
        from_logits: whether `scores` are logits.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or metrics of different `num_bins` or numbers of classes
            are merged.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    """"positives" and "negatives": number of examples in bins, shape [num_bins, num_classes]."""
    num_bins: int = eqx.field(static=True)

    def __init__(
        self,
        scores: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        num_bins: int = 512,
        from_logits: bool = False,
    ) -> None:
        self.num_bins = num_bins = whole("num_bins", num_bins)
        switch("from_logits", from_logits)
        given = at_least_float32(real("scores", scores))
        labels = jnp.asarray(classes("targets", targets))
        if given.ndim != 2 or labels.shape != given.shape[:1] or given.shape[1] == 0:
            raise ValueError(
                f"expected scores of shape [n, num_classes] and targets of shape [n]; they are "
                f"{list(given.shape)} and {list(labels.shape)}"
                f"{class_hint(targets) if labels.ndim > 1 else ''}"
            )
        counts, shares = as_weights(mask, weights, labels.shape)
        place = place_of_logits(_odds(given)) if from_logits else place_of_probabilities(given)
        nan = has_nan(given, axis=1) | has_nan(place, axis=1)
        labels = as_classes(labels, given.shape[1])
        inside = labels < given.shape[1]
        positive = labels[:, None] == jnp.arange(given.shape[1])[None, :]
        curves = jnp.broadcast_to((counts & inside & ~nan)[:, None], given.shape)
        each = None if shares is None else jnp.broadcast_to(shares[:, None], given.shape)
        self.counts = sums_of(
            {
                **in_bins(place, positive, curves, num_bins, each),
                "out_of_range": count_examples(counts & ~inside, shares),
                "num_nan": count_examples(counts & nan, shares),
            }
        )

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["roc_auc_macro"]`: floats by name, and two integer counts."""
        return _values(self, "class")


class MultilabelAUC(Additive):
    """`MultilabelAUC(probabilities, labels)`: ROC-AUC and average precision of several labels.

    `compute()` returns the values of `MulticlassAUC`, with "label" in place of "class": those of
    scikit-learn for several labels, for scores in the bins of `BinaryMetrics`. "num_out_of_range"
    counts entries that are neither 0 nor 1, and "num_nan" NaN scores. Both are excluded.

    Args:
        scores: probabilities, in [0, 1], shape [n, num_labels]; with `from_logits=True`, logits.
        targets: labels, each 0 or 1, of any real dtype or boolean, shape [n, num_labels].
        mask: true for entries that count, boolean of shape [n, num_labels] or [n]; all by default.
        weights: the weight of each entry, of shape [n, num_labels] or [n]; else as in
            `ClassificationMetrics`.
        num_bins: number of bins, 1 or more.
        from_logits: whether `scores` are logits.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or metrics of different `num_bins` or numbers of labels
            are merged.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    """"positives" and "negatives": number of entries in bins, shape [num_bins, num_labels]."""
    num_bins: int = eqx.field(static=True)

    def __init__(
        self,
        scores: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        num_bins: int = 512,
        from_logits: bool = False,
    ) -> None:
        self.num_bins = num_bins = whole("num_bins", num_bins)
        check_pair(scores, targets, 2, switch("from_logits", from_logits))
        scores, (positive, negative) = at_least_float32(scores), zeros_and_ones(targets)
        given, shares = as_weights(mask, weights, scores.shape, by_row=True)
        inside, nan = positive | negative, has_nan(scores)
        place = place_of_logits(scores) if from_logits else place_of_probabilities(scores)
        there = weighing(given, shares)
        self.counts = sums_of(
            {
                **in_bins(place, jnp.asarray(positive), given & inside & ~nan, num_bins, shares),
                "out_of_range": count(there & ~inside),
                "num_nan": count(there & nan),
            }
        )

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["roc_auc_macro"]`: floats by name, and two integer counts."""
        return _values(self, "label")


def place_of_logits(logits: Array) -> Array:
    """The position of a logit for binning: sigmoid(logit / 4), in [0, 1] and monotonic.

    With equal bins of the probability, nearly all scores of a rare class would share one bin.
    """
    return jax.nn.sigmoid(logits / 4)


def place_of_probabilities(p: Array) -> Array:
    """The position of the logit of a probability; those outside [0, 1] are clipped."""
    p = jnp.where(p > 0, jnp.minimum(p, 1), 0)  # a division by -0.0 would be -inf
    return 1 / (1 + jnp.sqrt(jnp.sqrt((1 - p) / p)))


def in_bins(
    place: Array, positive: Array, counts: Array, num_bins: int, weights: Array | None
) -> dict[str, Array]:
    """The positives and negatives in each bin, of those that count, of all or of each column.

    The shape is [num_bins] for positions of shape [n], and [num_bins, columns] for [n, columns].
    """
    place = jnp.where(counts, place, 0).astype(jnp.float32)
    bins = jnp.clip(jnp.floor(place * num_bins), 0, num_bins - 1).astype(jnp.int32)
    of_all = tally if place.ndim == 1 else tally_columns
    both = of_all(jnp.where(positive, bins, bins + num_bins), 2 * num_bins, counts, weights)
    return {"positives": both[:num_bins], "negatives": both[num_bins:]}


def areas(xp: ModuleType, positives: AnyArray, negatives: AnyArray) -> dict[str, Any]:
    """Areas under the curves, from the positives and negatives at each score, highest first."""
    above, below = xp.cumsum(positives, 0), xp.cumsum(negatives, 0)
    pairs = (negatives * (above - positives / 2)).sum(0)  # a pair with equal scores counts half
    precision = divide(xp, above, above + below)
    return {
        "roc_auc": divide(xp, pairs, positives.sum(0) * negatives.sum(0)),
        "average_precision": divide(xp, (precision * positives).sum(0), positives.sum(0)),
    }


def _odds(logits: Array) -> Array:
    """The logit of each class against the rest, from the logits of a softmax.

    Of the likeliest class, the probability of the rest is summed, since 1 - p would lose digits.
    """
    log_p = jax.nn.log_softmax(logits, axis=1)
    is_first = highest(logits)[:, None] == jnp.arange(logits.shape[1])[None, :]
    rest = jax.nn.logsumexp(jnp.where(is_first, -jnp.inf, log_p), axis=1, keepdims=True)
    return log_p - jnp.where(is_first, rest, jnp.log1p(-jnp.exp(log_p)))


def _values(metrics: MulticlassAUC | MultilabelAUC, unit: str) -> dict[str, Any]:
    """The areas over all entries, the means over columns, and those of each."""
    m, xp = for_compute(metrics)
    exact = exact_of(metrics.counts)
    positives, negatives = m.positives[::-1], m.negatives[::-1]
    micro = areas(xp, positives.sum(1), negatives.sum(1))
    roc, precision = ({name: area} for name, area in areas(xp, positives, negatives).items())
    holding = positives.sum(0)
    has_both = (holding != 0) & (negatives.sum(0) != 0)  # a NaN weight stays
    return {
        **{f"{name}_micro": area for name, area in micro.items()},
        **averaged(xp, roc, holding, unit, xp.where(has_both, 1.0, 0.0)),
        **averaged(xp, precision, holding, unit),
        "num_out_of_range": exact["out_of_range"],
        "num_nan": exact["num_nan"],
    }
