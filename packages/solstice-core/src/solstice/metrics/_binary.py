"""Metrics of two classes, and of several labels each of which holds or not."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice._sums import Counts, at_least_float32
from solstice.metrics._bases import (
    Additive,
    Growing,
    as_mask,
    count,
    divide,
    for_compute,
    has_nan,
    tally,
)


class BinaryMetrics(Additive):
    """`BinaryMetrics(probabilities, labels, mask=mask)`: two classes, in fixed memory.

    `compute()` gives, where an example is taken for positive if its score is `threshold` or more:

    - "accuracy", "precision", "recall", "specificity", "f1", "balanced_accuracy" (of the classes
      that there are), "matthews_corrcoef": as scikit-learn does with `zero_division=0`;
    - "roc_auc", "average_precision": as scikit-learn's of the scores rounded down to
      `num_bins` steps. `BinaryCurves` gives them exactly;
    - "num_nan": how many scores are NaN. They count as wrong, and for no curve.

    What is not defined, such as the ROC-AUC of one class, is 0.

    Args:
        scores: probabilities of the positive class, in [0, 1], shape [n]. Those beyond count for
            the curves as 0 or 1. Of logits, give `jax.nn.sigmoid(logits)`.
        targets: labels, 0 or 1 or booleans, shape [n].
        mask: which examples count, boolean of shape [n]; all if left out.
        threshold: what is taken for positive.
        num_bins: how finely scores are told apart for the curves.

    Raises:
        ValueError: shapes do not match, `num_bins` is below 1, or metrics of another `threshold`
            or `num_bins` are merged.
    """

    counts: Counts
    """"positives" and "negatives" are how many of each bin are so, of shape [num_bins]."""
    threshold: float = eqx.field(static=True)
    num_bins: int = eqx.field(static=True)

    def __init__(
        self,
        scores: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        threshold: float = 0.5,
        num_bins: int = 512,
    ) -> None:
        scores, targets = _pair(scores, targets, 1)
        scores = at_least_float32(scores)
        if num_bins < 1:
            raise ValueError(f"num_bins must be 1 or more; it is {num_bins}")
        counts, nan = as_mask(mask, scores.shape), has_nan(scores)
        guessed, curves = scores >= threshold, counts & ~nan
        steps = jnp.floor(jnp.where(nan, 0, scores).astype(jnp.float32) * num_bins)
        bins = jnp.clip(steps, 0, num_bins - 1).astype(jnp.int32)
        self.counts = Counts(
            {
                "positives": tally(bins, num_bins, curves & targets),
                "negatives": tally(bins, num_bins, curves & ~targets),
                "right_positives": count(curves & targets & guessed),
                "right_negatives": count(curves & ~targets & ~guessed),
                "num_positive": count(counts & targets),
                "num_negative": count(counts & ~targets),
                "num_nan": count(counts & nan),
            }
        )
        self.threshold, self.num_bins = float(threshold), num_bins

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["roc_auc"]`: floats by name, and one integer count."""
        m, xp = for_compute(self)
        wrong_positives = m.num_negative - m.right_negatives
        guessed = m.right_positives + wrong_positives
        recall = divide(xp, m.right_positives, m.num_positive)
        specificity = divide(xp, m.right_negatives, m.num_negative)
        total = m.num_positive + m.num_negative
        there = xp.minimum(m.num_positive, 1) + xp.minimum(m.num_negative, 1)
        return {
            "accuracy": divide(xp, m.right_positives + m.right_negatives, total),
            "precision": divide(xp, m.right_positives, guessed),
            "recall": recall,
            "specificity": specificity,
            "f1": divide(xp, 2.0 * m.right_positives, guessed + m.num_positive),
            "balanced_accuracy": divide(xp, recall + specificity, there),
            "matthews_corrcoef": _correlation(
                xp, m.right_positives, guessed, m.num_positive, total
            ),
            **_areas(xp, m.positives[::-1], m.negatives[::-1]),
            "num_nan": self.counts.values()["num_nan"],
        }


class BinaryCurves(Growing):
    """`BinaryCurves(scores, labels)`: ROC-AUC and average precision exactly, and the curves.

    `compute()` gives "roc_auc" and "average_precision" as scikit-learn does, 0 where they are not
    defined, and "num_nan", how many scores are NaN; they are left out. It keeps all scores, and is
    merged outside of the compiled step: `BinaryMetrics` is the one of fixed memory.

    Args:
        scores: the higher, the more likely positive; shape [n], of any range.
        targets: labels, 0 or 1 or booleans, shape [n].
        mask: which examples count, boolean of shape [n]; all if left out.

    Raises:
        ValueError: shapes do not match.
    """

    scores: Array
    targets: Array
    mask: Array

    def __init__(
        self, scores: ArrayLike, targets: ArrayLike, *, mask: ArrayLike | None = None
    ) -> None:
        self.scores, self.targets = _pair(scores, targets, 1)
        self.mask = as_mask(mask, self.scores.shape)

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["roc_auc"]`: floats, and one integer count. Not under `jax.jit`."""
        nan = np.asarray(has_nan(self.scores)) & np.asarray(self.mask)
        _, positives, negatives = self._steps()
        return {**_areas(np, positives, negatives), "num_nan": nan.sum()}

    def roc_curve(self) -> tuple[Any, Any, Any]:
        """`fpr, tpr, thresholds = curves.roc_curve()`: float64 arrays, from (0, 0) to (1, 1).

        The thresholds fall, and begin at infinity; a rate is 0 where its class is absent.
        """
        thresholds, positives, negatives = self._steps()
        rates = [
            np.insert(divide(np, counts.cumsum(), counts.sum()), 0, 0.0)
            for counts in (negatives, positives)
        ]
        return rates[0], rates[1], np.insert(thresholds, 0, np.inf)

    def precision_recall_curve(self) -> tuple[Any, Any, Any]:
        """`precision, recall, thresholds = curves.precision_recall_curve()`: float64 arrays.

        The thresholds fall; the recall rises to 1, or is 0 where there are no positives.
        """
        thresholds, positives, negatives = self._steps()
        right, wrong = positives.cumsum(), negatives.cumsum()
        return divide(np, right, right + wrong), divide(np, right, positives.sum()), thresholds

    def _steps(self) -> tuple[Any, Any, Any]:
        """The scores that there are, from the highest, and how many of each class have them."""
        scores = np.asarray(self.scores)
        kept = np.asarray(self.mask) & ~np.asarray(has_nan(self.scores))
        targets = np.asarray(self.targets)[kept]
        values, at = np.unique(scores[kept].astype(np.float64), return_inverse=True)
        counts = [
            np.bincount(at[targets == label], minlength=len(values))[::-1] for label in (1, 0)
        ]
        return values[::-1], counts[0], counts[1]


class MultilabelMetrics(Additive):
    """`MultilabelMetrics(probabilities, labels)`: several labels, each of which holds or not.

    `compute()` gives, where a label is taken to hold if its score is `threshold` or more, as
    scikit-learn does with `zero_division=0`:

    - "accuracy": the fraction of entries that are right; 1 - scikit-learn's `hamming_loss`;
    - "subset_accuracy": the fraction of examples all of whose entries are right;
    - "precision_micro", ...: over all entries; "precision_macro", ...: the mean over labels;
      "precision_weighted", ...: weighted by how often each label holds;
    - "precision_label_0", "recall_label_0", "f1_label_0", ...: each label;
    - "num_nan": how many scores are NaN. They count as wrong.

    Args:
        scores: probabilities, in [0, 1], shape [n, num_labels].
        targets: 0 or 1 or booleans, shape [n, num_labels].
        mask: which count: boolean of shape [n, num_labels], or of shape [n]; all if left out.
        threshold: what is taken to hold.

    Raises:
        ValueError: shapes do not match, or metrics of another `threshold` are merged.
    """

    counts: Counts
    """"right", "guessed" and "holding" are of shape [num_labels]."""
    threshold: float = eqx.field(static=True)

    def __init__(
        self,
        scores: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        threshold: float = 0.5,
    ) -> None:
        scores, targets = _pair(scores, targets, 2)
        scores = at_least_float32(scores)
        given = None if mask is None else jnp.asarray(mask)
        if given is not None and given.shape == scores.shape[:1]:
            given = jnp.broadcast_to(given[:, None], scores.shape)
        counts, nan = as_mask(given, scores.shape), has_nan(scores)
        guessed = jnp.where(nan, ~targets, scores >= threshold)
        entries = counts & (guessed == targets)
        examples = jnp.any(counts, axis=1)
        self.counts = Counts(
            {
                "right": count(entries & targets, 0),
                "guessed": count(counts & guessed, 0),
                "holding": count(counts & targets, 0),
                "right_entries": count(entries),
                "num_entries": count(counts),
                "right_examples": count(examples & jnp.all(entries | ~counts, axis=1)),
                "num_examples": count(examples),
                "num_nan": count(counts & nan),
            }
        )
        self.threshold = float(threshold)

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["f1_macro"]`: floats by name, and one integer count."""
        m, xp = for_compute(self)

        def scores(right: Any, guessed: Any, holding: Any) -> dict[str, Any]:
            both = guessed + holding
            return {
                "precision": divide(xp, right, guessed),
                "recall": divide(xp, right, holding),
                "f1": divide(xp, 2.0 * right, both),
            }

        each = scores(m.right, m.guessed, m.holding)
        micro = scores(m.right.sum(), m.guessed.sum(), m.holding.sum())
        weights = divide(xp, m.holding, m.holding.sum())
        return {
            "accuracy": divide(xp, m.right_entries, m.num_entries),
            "subset_accuracy": divide(xp, m.right_examples, m.num_examples),
            **{f"{name}_micro": value for name, value in micro.items()},
            **{f"{name}_macro": values.mean() for name, values in each.items()},
            **{f"{name}_weighted": (values * weights).sum() for name, values in each.items()},
            **{
                f"{name}_label_{index}": values[index]
                for index in range(m.right.shape[-1])
                for name, values in each.items()
            },
            "num_nan": self.counts.values()["num_nan"],
        }


def _pair(scores: ArrayLike, targets: ArrayLike, ndim: int) -> tuple[Array, Array]:
    given, labels = jnp.asarray(scores), jnp.asarray(targets)
    shape = "[n]" if ndim == 1 else "[n, num_labels]"
    if given.ndim != ndim or given.shape != labels.shape or 0 in given.shape[1:]:
        raise ValueError(
            f"expected scores and targets of shape {shape}; they are of shape {list(given.shape)} "
            f"and {list(labels.shape)}"
        )
    return given, labels.astype(bool)


def _correlation(xp: Any, right: Any, guessed: Any, positive: Any, total: Any) -> Any:
    """Matthews (1975), from shares, which do not overflow."""
    share = [divide(xp, number, total) for number in (right, guessed, positive)]
    spread = share[1] * (1 - share[1]) * share[2] * (1 - share[2])
    return divide(xp, share[0] - share[1] * share[2], xp.sqrt(xp.maximum(spread, 0.0)))


def _areas(xp: Any, positives: Any, negatives: Any) -> dict[str, Any]:
    """Areas under the curves, of how many of each class have each score, from the highest."""
    above, below = xp.cumsum(positives), xp.cumsum(negatives)
    pairs = (negatives * (above - positives / 2)).sum()  # of equal scores, half are in order
    precision = divide(xp, above, above + below)
    return {
        "roc_auc": divide(xp, pairs, positives.sum() * negatives.sum()),
        "average_precision": divide(xp, (precision * positives).sum(), positives.sum()),
    }
