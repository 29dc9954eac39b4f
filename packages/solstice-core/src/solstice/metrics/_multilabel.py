"""Metrics of multi-label classification."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike

from solstice._arguments import positive_or_none, probability, switch
from solstice._sums import Counts, Totals, at_least_float32
from solstice.metrics._bases import Additive, averaged, divide, for_compute, has_nan, scores_of
from solstice.metrics._counting import as_weights, count, times, weighing
from solstice.metrics._targets import check_pair, zeros_and_ones
from solstice.metrics._weights import WeightedCounts, exact_of, sums_of


class MultilabelMetrics(Additive):
    """`MultilabelMetrics(probabilities, labels)`: metrics of several independent labels.

    `compute()` returns the values below, as in scikit-learn with `zero_division=0`. A label is
    predicted if its score is at least `threshold`.

    - "accuracy": the fraction of correct entries, 1 - scikit-learn's `hamming_loss`;
    - "subset_accuracy": the fraction of examples with all entries correct;
    - "precision_micro", ...: over all entries; "precision_macro", ...: the mean over labels;
      "precision_weighted", ...: the mean weighted by the frequency of each label;
    - "precision_label_0", "recall_label_0", "f1_label_0", ...: each label;
    - "f2_macro", ... with `beta=2`, "f0.5_macro", ... with `beta=0.5`: scikit-learn's
      `fbeta_score`, with the same averages, and of each label;
    - "specificity_macro", ... with `specificity=True`: the fraction of labels of 0 that are
      predicted as 0, with the same averages, and of each label;
    - "precision_samples", "recall_samples", "f1_samples" with `samples=True`: the mean of the
      scores of each example, as scikit-learn's `average="samples"`;
    - "num_out_of_range": number of label entries that are neither 0 nor 1, such as -1, 0.9 or
      NaN. They are excluded from everything except "num_nan";
    - "num_nan": number of NaN scores. They count as wrong.

    Args:
        scores: probabilities, in [0, 1], shape [n, num_labels].
        targets: labels, each 0 or 1, of any real dtype or boolean, shape [n, num_labels].
        mask: true for entries that count, boolean of shape [n, num_labels] or [n]; all by default.
        weights: the weight of each entry, of shape [n, num_labels] or [n]; else as in
            `ClassificationMetrics`. The weight of an example, in "subset_accuracy", is the largest
            of its entries.
        threshold: the lowest score of a predicted label, in [0, 1].
        beta: adds "f<beta>", the F-score in which recall weighs `beta` times as much as precision.
        specificity: adds "specificity".
        samples: adds the mean over examples.

    Raises:
        TypeError: an array does not hold real numbers.
        ValueError: shapes do not match, or metrics of different options are merged.
    """

    can_raise = False
    is_vectorized = True
    counts: Counts | WeightedCounts
    """"right", "guessed" (predicted) and "holding" (true) have shape [num_labels]."""
    samples: Totals | None
    """The sums of the scores of each example."""
    threshold: float = eqx.field(static=True)
    beta: float | None = eqx.field(static=True)
    specificity: bool = eqx.field(static=True)

    def __init__(
        self,
        scores: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        threshold: float = 0.5,
        beta: float | None = None,
        specificity: bool = False,
        samples: bool = False,
    ) -> None:
        self.beta = positive_or_none("beta", beta)
        self.specificity = switch("specificity", specificity)
        self.threshold = threshold = probability("threshold", threshold)
        check_pair(scores, targets, 2)
        scores, (positive, negative) = at_least_float32(scores), zeros_and_ones(targets)
        given, shares = as_weights(mask, weights, scores.shape, by_row=True)
        given, nan = weighing(given, shares), has_nan(scores)
        counts = given & (positive | negative)
        guessed = jnp.where(nan, negative, scores >= threshold)  # NaN is always a wrong guess
        entries = counts & (guessed == positive)
        examples = jnp.any(counts, axis=1)
        of_examples = None if shares is None else jnp.max(jnp.where(counts, shares, 0), axis=1)
        right, guesses, holding = entries & positive, counts & guessed, counts & positive
        numbers = {
            "right": count(right, 0, shares),
            "guessed": count(guesses, 0, shares),
            "holding": count(holding, 0, shares),
            "right_entries": count(entries, weights=shares),
            "num_entries": count(counts, weights=shares),
            "right_examples": count(
                examples & jnp.all(entries | ~counts, axis=1), weights=of_examples
            ),
            "num_examples": count(examples, weights=of_examples),
            "out_of_range": count(given & ~counts),
            "num_nan": count(given & nan),
        }
        if specificity:
            numbers["right_zeros"] = count(entries & negative, 0, shares)
            numbers["zeros"] = count(counts & negative, 0, shares)
        self.counts = sums_of(numbers)
        self.samples = None
        if switch("samples", samples):
            rows = (at_least_float32(count(x, 1, shares)) for x in (right, guesses, holding))
            found: dict[str, Any] = scores_of(jnp, *rows, beta=self.beta)
            self.samples = Totals(
                {f"{n}_samples": jnp.sum(times(x, of_examples)) for n, x in found.items()}
            )

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["f1_macro"]`: floats by name, and two integer counts."""
        m, xp = for_compute(self)
        exact = exact_of(self.counts)
        each = scores_of(xp, m.right, m.guessed, m.holding, self.beta)
        micro = scores_of(xp, m.right.sum(0), m.guessed.sum(0), m.holding.sum(0), self.beta)
        if self.specificity:
            each["specificity"] = divide(xp, m.right_zeros, m.zeros)
            micro["specificity"] = divide(xp, m.right_zeros.sum(0), m.zeros.sum(0))
        samples = [name for name in vars(m) if name.endswith("_samples")]
        return {
            "accuracy": divide(xp, m.right_entries, m.num_entries),
            "subset_accuracy": divide(xp, m.right_examples, m.num_examples),
            **{f"{name}_micro": value for name, value in micro.items()},
            **averaged(xp, each, m.holding, "label"),
            **{name: divide(xp, getattr(m, name), m.num_examples) for name in samples},
            "num_out_of_range": exact["out_of_range"],
            "num_nan": exact["num_nan"],
        }
