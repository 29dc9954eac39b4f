"""The rarer metrics and options in one collection, padded to one size: one program for all."""

import jax
import jax.numpy as jnp
import numpy as np

from solstice import metrics

CLASSES = 4


def examples(rng, size):
    """Logits, labels of 0 and 1, and classes. Logits have bins of their own, and some are equal."""
    logits = rng.integers(-8, 9, (size, CLASSES)).astype(np.float32) / 4
    labels = rng.integers(0, 3, (size, CLASSES)) // 2
    return logits, labels.astype(np.int32), rng.integers(0, CLASSES, size).astype(np.int32)


@jax.jit
def collected(logits, labels, classes, mask, weights=None):
    some = {"mask": mask, "weights": weights}
    more = {**some, "beta": 2.0, "specificity": True}
    scores = jax.nn.sigmoid(logits)
    return metrics.MetricsCollection(
        classes=metrics.ClassificationMetrics(logits, classes, 0.0, CLASSES, **more),
        labels=metrics.MultilabelMetrics(scores, labels, samples=True, **more),
        areas_of_classes=metrics.MulticlassAUC(scores, classes, num_bins=128, **some),
        areas_of_labels=metrics.MultilabelAUC(
            logits, labels, num_bins=128, from_logits=True, **some
        ),
        kappa=metrics.WeightedKappa(logits, classes, CLASSES, **some),
        match=metrics.ExactMatch(logits >= 1, labels == 1, **some),
        found=metrics.RetrievalMetrics(logits, labels, top_k=2, **some),
    )


def padded_to(size):
    """`collected`, of arrays that are padded with NaN and labels that are not classes."""

    def build(logits, labels, classes, mask=None, weights=None):
        number = len(logits)
        mask = np.ones(number, bool) if mask is None else mask
        given = logits, labels, classes, mask, weights
        if number < size:
            values = np.nan, 99, 99, False, 0
            given = [
                None if x is None else padded(x, size, value)
                for x, value in zip(given, values, strict=True)
            ]
        return collected(*given)

    return build


def padded(array, size, value):
    widths = [(0, size - len(array)), *[(0, 0)] * (array.ndim - 1)]
    xp = np if isinstance(array, np.ndarray) else jnp  # NumPy compiles nothing
    return xp.pad(array, widths, constant_values=value)
