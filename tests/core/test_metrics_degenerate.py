"""Degenerate examples against scikit-learn, or NumPy in float64 where it has no such metric.

Each case is padded under a mask, cut into two batches, and masked wholly. What is not defined is 0,
as the docstrings say; the references say where they set it.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk

from solstice import metrics

pytestmark = pytest.mark.slow

SIZES = (1, 2, 3, 6)
TINY = float(np.finfo(np.float32).tiny)
INF, NAN = float("inf"), float("nan")
DTYPES = ["bool", "uint8", "float16", "bfloat16"]
"""Besides float32 and int32, of which all cases are that do not say."""

DIFFERENCES = {
    "cohen_kappa", "matthews_corrcoef", "r2", "explained_variance", "pearson",
    "expected_calibration_error", "maximum_calibration_error", "linear_kappa", "quadratic_kappa",
    "spearman",
}  # fmt: skip
"""Differences of numbers about 1: what is close to 0 is exact relative to 1."""


class Case(NamedTuple):
    """Arrays with the example on axis 0, and options."""

    arrays: tuple[Any, ...]
    options: dict[str, Any] = {}


class Family(NamedTuple):
    build: Callable[..., Any]
    """Metrics of arrays, a mask or None, and options."""
    expect: Callable[..., dict[str, Any]]
    """What NumPy arrays in float64 or of integers are to give, with options; of one at least."""
    cases: dict[str, Case]


def cast(values: Any, dtype: str = "float32") -> np.ndarray:
    return np.asarray(values).astype(jnp.dtype(dtype))


def exact(array: np.ndarray) -> np.ndarray:
    """In float64 or int64."""
    wide = np.float64 if jnp.issubdtype(array.dtype, jnp.inexact) else np.int64
    return array.astype(wide)


def flushed(values: np.ndarray) -> np.ndarray:
    """XLA may take a denormal number for 0, and does so in comparisons."""
    return np.where(np.abs(values) < TINY, 0, values)


def named(cases: Iterator[tuple[str, Case]]) -> dict[str, Case]:
    listed = list(cases)
    assert len({name for name, _ in listed}) == len(listed), "a name is taken twice"
    return dict(listed)


# One label of several


def classes_of(preds: np.ndarray, num_classes: int) -> np.ndarray:
    """The predicted classes; `num_classes` where there is none."""
    if preds.ndim == 2:
        found = flushed(preds).argmax(1)
        return np.where(np.isnan(preds).any(1), num_classes, found)
    inside = (preds >= 0) & (preds < num_classes) & (preds == np.floor(preds))
    return np.where(inside, preds, num_classes).astype(int)


def classification(
    preds: Any, labels: Any, losses: Any, num_classes: int, top_k: int | None = None
) -> dict[str, Any]:
    guessed = classes_of(preds, num_classes)
    inside = (labels >= 0) & (labels < num_classes)
    theirs = np.where(inside, labels, num_classes + 1)  # a class that nothing agrees with
    per_class = sk.precision_recall_fscore_support(
        theirs, guessed, labels=range(num_classes), zero_division=0
    )
    recalls = [np.mean(guessed[labels == c] == c) for c in np.unique(labels[inside])]
    expected = {
        "loss": losses.mean(),
        "accuracy": sk.accuracy_score(theirs, guessed),
        "balanced_accuracy": np.mean(recalls) if recalls else 0,
        "num_out_of_range": np.sum(~inside),
        "num_nan": np.isnan(preds).reshape(len(preds), -1).any(1).sum(),
        **agreement(guessed, np.where(inside, labels, num_classes), num_classes),
    }
    for name, scores in zip(("precision", "recall", "f1"), per_class[:3], strict=True):
        expected[f"{name}_macro"] = scores.mean()
        expected[f"{name}_weighted"] = (
            np.average(scores, weights=per_class[3]) if any(inside) else 0
        )
        expected |= {f"{name}_class_{c}": scores[c] for c in range(num_classes)}
    if top_k is not None:
        expected[f"top_{top_k}_accuracy"] = within_top(preds, labels, top_k)
    return expected


def agreement(guessed: Any, labels: Any, num_classes: int) -> dict[str, Any]:
    """scikit-learn's, with 0 for NaN; what is out of range is a class in which nothing is right."""
    inside = (guessed < num_classes) & (labels < num_classes)
    if inside.all():
        return {
            "cohen_kappa": np.nan_to_num(sk.cohen_kappa_score(labels, guessed)),
            "matthews_corrcoef": sk.matthews_corrcoef(labels, guessed),
        }
    shares = [np.bincount(x, minlength=num_classes + 1) / len(x) for x in (guessed, labels)]
    beyond = np.mean(inside & (guessed == labels)) - shares[0] @ shares[1]
    apart, spread = 1 - shares[0] @ shares[1], [1 - share @ share for share in shares]
    return {
        "cohen_kappa": beyond / apart if apart > 0 else 0,
        "matthews_corrcoef": beyond / np.sqrt(spread[0] * spread[1]) if all(spread) else 0,
    }


def within_top(scores: Any, labels: Any, top_k: int) -> float:
    """scikit-learn's; of ties, which it breaks by the order of classes, the label comes last."""
    scores = flushed(scores)
    classes = range(scores.shape[1])
    tied = any(len(np.unique(row)) < len(row) for row in scores)
    if not tied and np.isfinite(scores).all() and set(labels) <= set(classes):
        return sk.top_k_accuracy_score(labels, scores, k=top_k, labels=classes)
    hits = [
        label in classes and not np.isnan(row).any() and np.sum(row >= row[label]) <= top_k
        for row, label in zip(scores, labels, strict=True)
    ]
    return float(np.mean(hits))


def confusion(preds: Any, labels: Any, losses: Any, num_classes: int) -> dict[str, Any]:
    del losses
    guessed = classes_of(preds, num_classes)
    kept = (guessed < num_classes) & (labels >= 0) & (labels < num_classes)
    matrix = np.zeros((num_classes, num_classes))
    if kept.any():
        matrix = sk.confusion_matrix(labels[kept], guessed[kept], labels=range(num_classes))
    return {"confusion_matrix": matrix, "num_out_of_range": np.sum(~kept)}


def class_cases() -> Iterator[tuple[str, Case]]:
    """Predictions, labels and losses."""

    def case(preds: Any, labels: Any, num_classes: int = 4, *dtypes: str) -> Case:
        of_preds, of_labels = (*dtypes, *["int32", "int32"][len(dtypes) :])
        losses = cast(np.linspace(0.25, 3, len(labels)))
        return Case(
            (cast(preds, of_preds), cast(labels, of_labels), losses), {"num_classes": num_classes}
        )

    for n in SIZES:
        i = np.arange(n)
        patterns = {
            "perfect": (i % 4, i % 4),
            "perfectly wrong": ((i + 1) % 4, i % 4),
            "all of one class": (0 * i, 0 * i),
            "all of the last class": (0 * i + 3, 0 * i + 3),
            "labels of one class": (i % 4, 0 * i + 2),
            "predictions of one class": (0 * i + 1, i % 4),
            "disjoint": (2 + i % 2, i % 2),
            "absent classes": (2 * (i // 2 % 2), 2 * (i % 2)),
            "labels out of range": (i % 4, 0 * i + 4),
            "a negative label": (i % 4, i % 4 - 1),
            "predictions out of range": (0 * i - 1, i % 4),
            "both out of range": (0 * i + 7, 0 * i - 100),
        }
        for name, (preds, labels) in patterns.items():
            yield f"{name}, {n}", case(preds, labels)
        yield f"the only class, {n}", case(0 * i, 0 * i, 1)
        yield f"no class of one, {n}", case(0 * i + 1, 0 * i, 1)
    for dtype in DTYPES:
        yield f"scores of {dtype}", case([[0, 1], [1, 0]], [1, 1], 2, dtype)
    for dtypes in [("bool", "bool"), ("int8", "uint8"), ("float16", "int8"), ("bfloat16", "bool")]:
        yield (
            "predictions and labels of {} and {}".format(*dtypes),
            case([0, 1], [1, 1], 4, *dtypes),
        )
    yield "300 classes in uint8", case([0, 255], [0, 255], 300, "uint8", "uint8")
    yield "257 classes in bfloat16", case([0, 256], [0, 256], 257, "bfloat16")
    yield "fractions", case([0.5, 1, 1.999], [0, 1, 1], 4, "float32")
    yield "NaN and infinite", case([NAN, INF, -INF, 1], [0, 1, 1, 1], 4, "float32")


def score_cases() -> Iterator[tuple[str, Case]]:
    """A score for each of four classes, with the two highest looked at."""
    for name, rows in {
        "all tied": np.zeros((3, 4)),
        "two tied": [[0, 2, 2, 1]] * 3,
        "ordered": [[3, 2, 1, 0]] * 3,
        "infinite": [[INF, 2, -INF, 0], [0, 1, INF, 2], [-INF, 3, 2, 1]],
        "all -inf": np.full((3, 4), -INF),
        "tied at inf": [[INF, INF, 0, 1]] * 3,
        "huge": [[1e18, 2e18, -1e18, 0]] * 3,
        "far away": [[1e6, 1e6 + 0.0625, 1e6 + 0.125, 1e6 - 1]] * 3,
        "denormal": [[1e-40, 2e-40, 3e-40, 0]] * 3,
        "small": [[1e-37, 2e-37, 3e-37, 0]] * 3,
        "NaN": [[NAN, 1, 2, 3], [0, 1, 2, NAN], [0, 1, 2, 3]],
    }.items():
        for labels in ([0, 1, 2], [3, 3, 3], [4, -1, 1]):
            losses = cast([0.5, 1, 2])
            yield (
                f"scores, {name}, {labels}",
                Case((cast(rows), np.int32(labels), losses), {"num_classes": 4, "top_k": 2}),
            )
    rows = [[0.1, 0.4, 0.3, 0.2]]
    for top_k in (1, 4):
        options = {"num_classes": 4, "top_k": top_k}
        yield f"the best {top_k}", Case((cast(rows), np.int32([2]), cast([1])), options)


def kappas(preds: Any, labels: Any, losses: Any, num_classes: int) -> dict[str, Any]:
    """scikit-learn's, with 0 for NaN."""
    del losses
    guessed = classes_of(preds, num_classes)
    kept = (guessed < num_classes) & (labels >= 0) & (labels < num_classes)
    pair, expected = (labels[kept], guessed[kept]), {"num_out_of_range": np.sum(~kept)}
    for kind in ("linear", "quadratic"):
        options = {"labels": range(num_classes), "weights": kind}
        found = sk.cohen_kappa_score(*pair, **options) if num_classes > 1 and kept.any() else 0
        expected[f"{kind}_kappa"] = np.nan_to_num(found)
    return expected


def areas_of_classes(probabilities: Any, labels: Any) -> dict[str, Any]:
    """scikit-learn's of each class, and their means where they are defined."""
    nan, size = np.isnan(probabilities).any(1), probabilities.shape[1]
    inside = (labels >= 0) & (labels < size)
    kept = inside & ~nan
    steps = np.clip(np.floor(place(flushed(probabilities[kept])) * 512), 0, 511)
    hot = np.arange(size) == labels[kept][:, None]
    each = [areas(*column) for column in zip(steps.T, hot.T, strict=True)]
    held, expected = hot.sum(0), {"num_out_of_range": np.sum(~inside), "num_nan": np.sum(nan)}
    defined = {"roc_auc": (held > 0) & (held < len(hot)), "average_precision": held >= 0}
    micro = areas(steps.ravel(), hot.ravel()) if kept.any() else dict.fromkeys(defined, 0)
    for name, there in defined.items():
        values = np.asarray([area[name] for area in each])
        expected |= {f"{name}_class_{c}": value for c, value in enumerate(values)}
        expected[f"{name}_micro"] = micro[name]
        for average, weights in (("macro", there), ("weighted", there * held)):
            mean = values @ weights / weights.sum() if weights.any() else 0
            expected[f"{name}_{average}"] = mean
    return expected


def calibration(probabilities: Any, labels: Any, num_bins: int = 15) -> dict[str, Any]:
    kept = ~np.isnan(probabilities).any(1)
    outside = np.sum((labels < 0) | (labels >= probabilities.shape[1]))
    probabilities, labels = flushed(probabilities[kept]), labels[kept]
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.float32(np.arange(1, num_bins) / num_bins)
    bins = np.searchsorted(edges, confidence, side="right")
    apart = [
        (np.mean(bins == b), abs(confidence[bins == b].mean() - right[bins == b].mean()))
        for b in np.unique(bins)
    ]
    return {
        "expected_calibration_error": sum(share * error for share, error in apart),
        "maximum_calibration_error": max((error for _, error in apart), default=0),
        "num_out_of_range": outside,
        "num_nan": np.sum(~kept),
    }


def calibration_cases() -> Iterator[tuple[str, Case]]:
    for n in SIZES:
        i = np.arange(n)
        hot = np.eye(3)[i % 3]
        for name, (rows, labels) in {
            "perfect": (hot, i % 3),
            "perfectly wrong": (hot, (i + 1) % 3),
            "one class": (hot[:1].repeat(n, 0), 0 * i),
            "tied": (np.full((n, 3), 1 / 3), i % 3),
            "no confidence": (np.zeros((n, 3)), i % 3),
            "no such label": (0.9 * hot, 0 * i + 3),
            "nearly sure": (0.98 * hot + 0.01, i % 3),
            "in one bin": (0.9 * hot + 0.01, i % 3),
            "the only class": (np.ones((n, 1)), 0 * i),
        }.items():
            yield f"{name}, {n}", Case((cast(rows), np.int32(labels)))
    for num_bins in (1, 2, 7, 10, 15):
        edges = np.arange(num_bins + 1) / num_bins
        rows = np.stack([edges, 0 * edges], 1)
        labels = np.int32(np.arange(len(edges)) % 2)
        yield f"at {num_bins} edges", Case((cast(rows), labels), {"num_bins": num_bins})
        below = np.nextafter(cast(rows), np.float32(0))
        yield f"below {num_bins} edges", Case((below, labels), {"num_bins": num_bins})
    for dtype in DTYPES:
        yield f"of {dtype}", Case((cast([[0.3, 1.0], [0.7, 0]], dtype), cast([1, 1], dtype)))
    yield "NaN", Case((cast([[NAN, 1], [0.25, 0.75], [NAN, NAN]]), np.int32([1, 1, 0])))
    yield "all NaN", Case((cast([[NAN, 1], [NAN, NAN]]), np.int32([1, 1])))
    yield "denormal", Case((cast([[0, 1e-40], [1e-40, 0]]), np.int32([1, 0])))


def area_cases() -> Iterator[tuple[str, Case]]:
    yield from ((name, case) for name, case in calibration_cases() if "edges" not in name)
    for name, (scores, labels) in score_patterns(6).items():
        rows = np.stack([scores, 1 - np.asarray(scores)], 1)
        yield f"two classes, {name}", Case((cast(rows), np.int32(1 - labels)))


# Two classes, and several labels


def ranked(scores: np.ndarray) -> np.ndarray:
    """Numbers in the same order, which scikit-learn takes: it refuses what is infinite."""
    return np.unique(scores, return_inverse=True)[1] if np.isinf(scores).any() else scores


def areas(scores: Any, labels: Any) -> dict[str, Any]:
    """scikit-learn's, and 0 where a class is absent on which they rest."""
    both = 0 < labels.sum() < len(labels)
    return {
        "roc_auc": sk.roc_auc_score(labels, ranked(scores)) if both else 0,
        "average_precision": (
            sk.average_precision_score(labels, ranked(scores)) if labels.any() else 0
        ),
    }


def curves(scores: Any, labels: Any) -> dict[str, Any]:
    kept = ~np.isnan(scores)
    known = {"num_out_of_range": 0, "num_nan": np.sum(~kept)}
    return {**areas(scores[kept], labels[kept] != 0), **known}


def place(scores: np.ndarray) -> np.ndarray:
    """sigmoid(logit / 4) of probabilities, in float32: at a bin's edge the last digit decides."""
    p = np.clip(scores, 0, 1).astype(np.float32) + np.float32(0)
    return 1 / (1 + np.sqrt(np.sqrt((1 - p) / p)))


def binary(scores: Any, labels: Any, threshold: float = 0.5, num_bins: int = 512) -> dict[str, Any]:
    nan, labels, scores = np.isnan(scores), labels != 0, flushed(scores)
    preds = np.where(nan, ~labels, scores >= threshold)
    steps = np.clip(np.floor(place(scores[~nan]) * num_bins), 0, num_bins - 1)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, preds, labels=[False, True], zero_division=0
    )
    return {
        "accuracy": sk.accuracy_score(labels, preds),
        "precision": precision[1],
        "recall": recall[1],
        "specificity": recall[0],
        "f1": f1[1],
        "balanced_accuracy": sk.balanced_accuracy_score(labels, preds),
        "matthews_corrcoef": sk.matthews_corrcoef(labels, preds),
        **areas(steps, labels[~nan]),
        "num_out_of_range": 0,
        "num_nan": nan.sum(),
    }


def score_patterns(n: int) -> dict[str, tuple[Any, Any]]:
    i = np.arange(n)
    cycle = np.asarray([0, 0.5, 1])[i % 3]
    return {
        "no positives": (i / n, 0 * i),
        "no negatives": (i / n, 0 * i + 1),
        "perfect": (i % 2, i % 2),
        "perfectly wrong": (1 - i % 2, i % 2),
        "all at 0": (0 * i, i % 2),
        "all at 0.5": (0 * i + 0.5, i % 2),
        "all at 1": (0 * i + 1, (i + 1) % 2),
        "at 0, 0.5 and 1": (cycle, i // 2 % 2),
        "just below": (np.nextafter(np.float32(cycle), np.float32(-1)), i // 2 % 2),
        "one positive": ((i + 1) / (n + 1), i == 0),
    }


UNUSUAL = {
    "infinite": [INF, -INF, 0.25, 0.75],
    "all infinite": [INF, INF, INF, INF],
    "huge": [1e18, -1e18, 1e18, 2e18],
    "far away": [1e6, 1e6 + 0.0625, 1e6 + 0.125, 1e6],
    "denormal": [1e-40, 2e-40, 0, 1e-40],
    "small": [2e-38, 3e-38, 4e-38, 2e-38],
    "negative": [-1, -0.5, -0.0, 0.0],
    "one NaN": [NAN, 0.25, 0.75, 0.5],
    "all NaN but one": [NAN, NAN, 0.75, NAN],
    "all NaN": [NAN, NAN, NAN, NAN],
}


def binary_cases(*all_options: dict[str, Any]) -> Iterator[tuple[str, Case]]:
    for options in all_options:
        told = "".join(f", {name} {value}" for name, value in options.items())
        for n in SIZES:
            for name, (scores, labels) in score_patterns(n).items():
                yield f"{name}, {n}{told}", Case((cast(scores), np.int32(labels)), options)
    for name, scores in UNUSUAL.items():
        for labels in ([0, 1, 0, 1], [1, 1, 0, 0]):
            yield f"{name}, {labels}", Case((cast(scores), np.int32(labels)))
    for dtype in DTYPES:
        yield f"of {dtype}", Case((cast([0, 0.6, 1.2, 0.3], dtype), cast([0, 1, 0, 1], dtype)))


def multilabel(scores: Any, labels: Any, threshold: float = 0.5) -> dict[str, Any]:
    labels, nan = labels != 0, np.isnan(scores)
    preds = np.where(nan, ~labels, flushed(scores) >= threshold)
    columns = range(labels.shape[1])
    each = np.asarray([of_label(labels[:, k], preds[:, k]) for k in columns])
    holding = labels.sum(0)
    expected = {
        "accuracy": np.mean(labels == preds),
        "subset_accuracy": np.mean((labels == preds).all(1)),
        "num_out_of_range": 0,
        "num_nan": nan.sum(),
    }
    averages = {
        "micro": of_label(labels.ravel(), preds.ravel()),
        "macro": each.mean(0),
        "weighted": np.average(each, axis=0, weights=holding) if any(holding) else 0 * each[0],
    }
    if len(columns) > 1:  # scikit-learn takes one label for two classes
        assert expected["accuracy"] == pytest.approx(1 - sk.hamming_loss(labels, preds))
        averages = {
            average: sk.precision_recall_fscore_support(
                labels, preds, average=average, zero_division=0
            )[:3]
            for average in averages
        }
    averages |= {f"label_{k}": each[k] for k in columns}
    for average, scores in averages.items():
        for name, score in zip(("precision", "recall", "f1"), scores, strict=True):
            expected[f"{name}_{average}"] = score
    return expected


def of_label(labels: Any, preds: Any) -> list[float]:
    scores = sk.precision_recall_fscore_support(labels, preds, labels=[True], zero_division=0)
    return [score.item() for score in scores[:3]]


def multilabel_cases() -> Iterator[tuple[str, Case]]:
    for name, (arrays, options) in binary_cases({"threshold": 0.0}, {"threshold": 1.0}, {}):
        scores, labels = arrays
        if name.endswith(", 6"):
            three = tuple(x.reshape(2, 3) for x in arrays)
            yield f"three labels, {name}", Case(three, options)
        yield f"one label, {name}", Case((scores[:, None], labels[:, None]), options)
    for n in SIZES:
        row = np.arange(3 * n).reshape(n, 3) % 2
        yield f"none holds, {n}", Case((cast(row), np.int32(0 * row)))
        yield f"all hold, {n}", Case((cast(row), np.int32(0 * row + 1)))
        yield f"none is predicted, {n}", Case((cast(0 * row), np.int32(row)))
        yield f"one never holds, {n}", Case((cast(row), np.int32(row * [1, 0, 1])))


def retrieval(scores: Any, relevance: Any, top_k: int = 10) -> dict[str, Any]:
    """scikit-learn's of each query, whose relevant items are the last of their equals."""
    nan = np.isnan(scores)
    scores, relevant = np.where(nan, -INF, flushed(scores)), relevance > 0
    # A rank for each item, the highest for the first: by the score, then by the relevance.
    order = np.lexsort((-relevance, scores), axis=1)
    ranked = np.empty_like(scores)
    np.put_along_axis(ranked, order, np.arange(scores.shape[1])[None].astype(float), axis=1)
    place = scores.shape[1] - ranked
    found = np.where(relevant, place, INF)
    number = relevant.sum(1)
    recalls = (found <= top_k).sum(1) / np.maximum(number, 1)
    several = scores.shape[1] > 1  # scikit-learn refuses a single item
    gain = sk.ndcg_score(relevance, ranked, k=top_k) if several else np.mean(number > 0)
    return {
        f"recall_at_{top_k}": recalls.mean(),
        "mrr": np.mean(1 / found.min(1)),
        f"ndcg_at_{top_k}": gain,
        "num_without_relevant": np.sum(number == 0),
        "num_out_of_range": 0,
        "num_nan": nan.sum(),
    }


def retrieval_cases() -> Iterator[tuple[str, Case]]:
    for name, (arrays, options) in multilabel_cases():
        if "threshold" not in options and "label, of" not in name:
            yield name, Case(arrays, {"top_k": 2})
    for name, scores in UNUSUAL.items():
        rows = np.stack([scores, scores[::-1]])
        yield f"four items, {name}", Case((cast(rows), np.int32([[0, 2, 0, 1], [1, 1, 0, 3]])))


# Numbers


def ranks(preds: Any, targets: Any) -> dict[str, Any]:
    """SciPy's, with 0 for constants."""
    kept = ~(np.isnan(preds) | np.isnan(targets))
    pair = preds[kept], targets[kept]
    varies = all(len(np.unique(x)) > 1 for x in pair)
    found = scipy.stats.spearmanr(*pair)[0] if varies else 0
    return {"spearman": found, "num_nan": np.sum(~kept)}


def regression(preds: Any, targets: Any) -> dict[str, Any]:
    kept = ~(np.isnan(preds) | np.isnan(targets))
    preds, targets = flushed(preds[kept]), flushed(targets[kept])
    if not len(preds):
        names = ["mse", "rmse", "mae", "r2", "explained_variance", "pearson"]
        return {"num_nan": np.sum(~kept), "num_infinite": 0, **dict.fromkeys(names, 0)}
    counts = {"num_nan": np.sum(~kept), "num_infinite": np.sum(np.isinf(preds) | np.isinf(targets))}
    if counts["num_infinite"]:  # which scikit-learn refuses
        gap, spread = preds - targets, np.mean((targets - targets.mean()) ** 2)
        error = np.mean(gap**2)
        means = {"mse": error, "rmse": np.sqrt(error), "mae": np.mean(np.abs(gap))}
        r2 = 1 - error / spread if spread else 0
        return {**means, "r2": r2, "explained_variance": NAN, "pearson": NAN, **counts}
    error, spread = np.mean((preds - targets) ** 2), np.mean((targets - targets.mean()) ** 2)
    varies = np.ptp(preds) > 0 and np.ptp(targets) > 0
    return {
        "mse": sk.mean_squared_error(targets, preds),
        "rmse": sk.root_mean_squared_error(targets, preds),
        "mae": sk.mean_absolute_error(targets, preds),
        # Of one number scikit-learn gives NaN.
        "r2": sk.r2_score(targets, preds) if spread else float(error == 0),
        "explained_variance": sk.explained_variance_score(targets, preds),
        "pearson": np.corrcoef(preds, targets)[0, 1] if varies else 0,
        **counts,
    }


def regression_cases() -> Iterator[tuple[str, Case]]:
    for n in SIZES:
        wave = np.asarray([0, 1, -2, 5, 3, -1])[:n] / 8
        other = np.asarray([2, -1, 3, 1, 0, 4])[:n] / 8
        for name, (preds, targets) in {
            "perfect": (wave, wave),
            "perfectly wrong": (-wave, wave),
            "constant targets": (wave, 0 * wave + 0.3),
            "constant predictions": (0 * wave + 0.3, wave),
            "both constant": (0 * wave + 2, 0 * wave + 0.3),
            "the same constant": (0 * wave + 0.3, 0 * wave + 0.3),
            "zeros": (0 * wave, 0 * wave),
            "off by a constant": (wave + 2, wave),
            "both far away": (1e6 + wave, 1e6 + other),
            "far away in other directions": (1e6 + wave, other - 1e6),
            "predictions far away": (1e6 + wave, other),
            "targets far away": (wave, 1e6 + other),
            "predictions far away of tiny targets": (1e6 + wave, other / 1024),
            "huge": (1e18 * wave, 1e18 * other),
            "huge and small": (1e18 * wave, other),
            "small": (1e-15 * wave, 1e-15 * other),
            "denormal": (1e-39 * wave, 1e-39 * other),
            "nearly right": (1e3 * other * (1 + 2.0**-20), 1e3 * other),
        }.items():
            yield f"{name}, {n}", Case((cast(preds), cast(targets)))
    for dtype in DTYPES:
        arrays = cast([0, 0.6, 1.2, 3.3], dtype), cast([0, 1.3, 0, 0.1], dtype)
        yield f"of {dtype}", Case(arrays)
    yield "one NaN", Case((cast([NAN, 1, 2]), cast([0, 1, 3])))
    yield "a NaN target", Case((cast([0, 1, 2]), cast([0, NAN, 3])))
    yield "all NaN", Case((cast([NAN, 1, NAN]), cast([0, NAN, NAN])))
    for name, (preds, targets) in {
        "one prediction": ([INF, 1, 2, 3], [0, 1, 3, 5]),
        "all predictions": ([-INF, -INF, INF], [0, 1, 3]),
        "a prediction of constant targets": ([1, -INF, 2], [3, 3, 3]),
        "a prediction of one": ([INF], [1]),
        "a target": ([0, 1, 2, 3], [0, INF, 3, 5]),
        "both": ([0, INF, 2, 3], [0, INF, 3, 5]),
        "both, of two signs": ([0, INF, 2, 3], [0, -INF, 3, 5]),
        "some, of two signs": ([0, INF, 2, -INF], [0, 1, 3, 5]),
        "some beside NaN": ([INF, INF, 2, NAN], [NAN, 1, 3, INF]),
    }.items():
        yield f"infinite: {name}", Case((cast(preds), cast(targets)))


# Next tokens


def language(logits: Any, targets: Any) -> dict[str, Any]:
    size = logits.shape[-1]
    inside = (targets >= 0) & (targets < size)
    logits, targets = flushed(logits[inside]), targets[inside].astype(int)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    own = np.take_along_axis(log_p, targets[:, None], 1)
    loss = -own.mean() if inside.any() else 0
    right = (logits.argmax(-1) == targets) & ~np.isnan(logits).any(-1)  # NaN predicts nothing
    return {
        "loss": loss,
        "bits_per_token": loss / np.log(2),
        "perplexity": np.exp(loss),
        "accuracy": np.mean(right) if inside.any() else 0,
        "num_tokens": inside.sum(),
        "num_out_of_range": np.sum(~inside),
    }


def language_cases() -> Iterator[tuple[str, Case]]:
    for n in SIZES:
        i = np.arange(n)
        hot, targets = np.eye(4)[i % 4], i % 4
        for name, (logits, labels) in {
            "all tied": (np.zeros((n, 4)), targets),
            "sure and right": (1e4 * hot, targets),
            "sure and wrong": (1e4 * hot, (i + 1) % 4),
            "infinitely sure and right": (np.where(hot, 0, -INF), targets),
            "infinitely sure and wrong": (np.where(hot, 0, -INF), (i + 1) % 4),
            "huge and right": (1e18 * hot, targets),
            "huge and wrong": (1e18 * hot, (i + 1) % 4),
            "far away": (1e6 + hot / 8, targets),
            "far below": (hot / 8 - 1e6, targets),
            "tiny": (1e-30 * hot, targets),
            "denormal": (1e-40 * hot, (i + 1) % 4),
            "no such token": (hot, targets + 4),
            "a negative token": (hot, targets - 1),
            "the only token": (np.zeros((n, 1)), 0 * i),
        }.items():
            yield f"{name}, {n}", Case((cast(logits), np.int32(labels)))
    for dtype in DTYPES:
        yield f"of {dtype}", Case((cast([[0.3, 1.6], [0.7, 0]], dtype), cast([1, 1], dtype)))
    yield "one NaN", Case((cast([[0, NAN], [1, 0]]), np.int32([1, 1])))


# Means, sums, and what is kept


def numbers() -> Iterator[tuple[str, np.ndarray]]:
    for n in SIZES:
        wave = np.asarray([1, 2, 5, 3, 4, 7])[:n] / 8
        for name, values in {
            "zeros": 0 * wave,
            "constant": 0 * wave + 0.3,
            "negative": -wave,
            "far away": 1e6 + wave,
            "huge": 1e18 * wave,
            "small": 1e-30 * wave,
            "denormal": 1e-39 * wave,
            "infinite": INF * wave,
            "-inf": -INF * wave,
        }.items():
            yield f"{name}, {n}", cast(values)
        yield f"two outputs, {n}", cast(np.stack([wave, -2 * wave], 1))
    for dtype in DTYPES:
        for values in ([0, 1], [0, 0], [1, 1]):
            yield f"{values} of {dtype}", cast(values, dtype)
    yield "2048 ones and more", cast([2048, 1, 1, 1], "float16")
    yield "256 ones and more", cast([256, 1, 1, 1], "bfloat16")
    yield "whole numbers beyond float32's", np.int32([2**24, 1, 2**24])
    yield "one NaN", cast([0, NAN, 2])
    yield "both infinities", cast([INF, -INF, 2])


def value_cases() -> Iterator[tuple[str, Case]]:
    for name, values in numbers():
        yield name, Case((values,))


def weighted_cases() -> Iterator[tuple[str, Case]]:
    yield from value_cases()
    for dtype in DTYPES:
        yield f"weights of {dtype}", Case((cast([3, 2], dtype), cast([0, 1], dtype)))
    for name, weights in {
        "zeros": [0, 0, 0],
        "one": [0, 0.5, 0],
        "tiny": [1e-30, 2e-30, 1e-30],
        "huge": [1e18, 2e18, 0],
    }.items():
        yield f"weights, {name}", Case((cast([3, 2, 7]), cast(weights)))
    yield "NaN that weighs nothing", Case((cast([NAN, 2, INF]), cast([0, 1, 0])))


def mean(values: Any, weights: Any = None) -> dict[str, Any]:
    weights = np.ones(values.shape) if weights is None else weights
    counts = weights > 0
    return {"mean": np.average(values[counts], weights=weights[counts]) if counts.any() else 0}


def total(values: Any) -> dict[str, Any]:
    return {"sum": values.sum()}


def as_wide_as(mask: Any, array: Any) -> Any:
    rows = mask.reshape(mask.shape + (1,) * (array.ndim - 1))
    return jnp.broadcast_to(rows, array.shape)


def build_mean(values: Any, weights: Any = None, *, mask: Any) -> Any:
    if mask is None:
        return metrics.Mean(values, weights)
    if weights is None:
        return metrics.Mean(values, as_wide_as(mask, values))
    return metrics.Mean(values, jnp.where(mask, weights, jnp.zeros_like(weights)))


def build_sum(values: Any, *, mask: Any) -> Any:
    return metrics.Sum(values, None if mask is None else as_wide_as(mask, values))


def build_classes(preds: Any, labels: Any, losses: Any, **options: Any) -> Any:
    return metrics.ClassificationMetrics(preds, labels, losses, **options)


def build_kappa(preds: Any, labels: Any, losses: Any, **options: Any) -> Any:
    del losses
    return metrics.WeightedKappa(preds, labels, **options)


def build_confusion(preds: Any, labels: Any, losses: Any, **options: Any) -> Any:
    del losses
    return metrics.ConfusionMatrix(preds, labels, **options)


FAMILIES = {
    "ClassificationMetrics": Family(
        build_classes, classification, named(itertools.chain(class_cases(), score_cases()))
    ),
    "ConfusionMatrix": Family(build_confusion, confusion, named(class_cases())),
    "WeightedKappa": Family(build_kappa, kappas, named(class_cases())),
    "MulticlassAUC": Family(metrics.MulticlassAUC, areas_of_classes, named(area_cases())),
    "RetrievalMetrics": Family(metrics.RetrievalMetrics, retrieval, named(retrieval_cases())),
    "RankCorrelation": Family(metrics.RankCorrelation, ranks, named(regression_cases())),
    "CalibrationError": Family(metrics.CalibrationError, calibration, named(calibration_cases())),
    "BinaryMetrics": Family(
        metrics.BinaryMetrics,
        binary,
        named(binary_cases({}, {"threshold": 0.0}, {"threshold": 1.0, "num_bins": 2})),
    ),
    "BinaryCurves": Family(metrics.BinaryCurves, curves, named(binary_cases({}))),
    "MultilabelMetrics": Family(metrics.MultilabelMetrics, multilabel, named(multilabel_cases())),
    "RegressionMetrics": Family(metrics.RegressionMetrics, regression, named(regression_cases())),
    "LanguageModelMetrics": Family(metrics.LanguageModelMetrics, language, named(language_cases())),
    "Mean": Family(build_mean, mean, named(weighted_cases())),
    "Sum": Family(build_sum, total, named(value_cases())),
    "Collect": Family(
        lambda values, mask: metrics.Collect(mask=mask, values=values),
        lambda values: {"values": values},
        named(value_cases()),
    ),
}


LENGTH = 16
"""Of a batch with its padding, so that few are compiled."""


def pad(array: np.ndarray) -> np.ndarray:
    """With NaN, or what is no class, for the examples that are missing."""
    missing = LENGTH - len(array)
    nothing = NAN if jnp.issubdtype(array.dtype, jnp.inexact) else 99
    rows = np.full((missing, *array.shape[1:]), nothing).astype(array.dtype)
    return np.concatenate([array, rows])


@functools.cache
def compiled(family: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """The metrics of arrays and a mask: one function for all cases of a kind."""
    build = FAMILIES[family].build
    return jax.jit(lambda arrays, mask: build(*arrays, mask=mask, **dict(options)))


def assert_alike(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    assert found.keys() == expected.keys(), what
    for name, value in expected.items():
        near = 1e-6 if name in DIFFERENCES else TINY
        np.testing.assert_allclose(
            np.asarray(found[name]).astype(np.float64), np.asarray(value).astype(np.float64),
            rtol=1e-6, atol=near, err_msg=f"{what}: {name}",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "case"),
    [(family, case) for family, (_, _, cases) in FAMILIES.items() for case in cases],
)
def test_degenerate_examples(family: str, case: str):
    arrays, options = FAMILIES[family].cases[case]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of what is not defined
        expected = FAMILIES[family].expect(*map(exact, arrays), **options)
    built, padded = compiled(family, tuple(options.items())), tuple(map(pad, arrays))
    row = np.arange(LENGTH)
    real = row < len(arrays[0])
    assert_alike(built(padded, real).compute(), expected, "masked")
    first = row < len(arrays[0]) // 2
    halves = built(padded, first).merge(built(padded, real & ~first))
    assert_alike(halves.compute(), expected, "two batches")
    if len(arrays[0]) == 1:  # each size would be compiled anew
        assert_alike(built(arrays, None).compute(), expected, "alone")
    for name, value in built(padded, row < 0).compute().items():
        assert np.all(np.asarray(value) == (name == "perplexity")), f"masked wholly: {name}"


@pytest.mark.parametrize("family", FAMILIES)
def test_there_are_many_cases_of_each(family: str):
    assert len(FAMILIES[family].cases) >= 50
