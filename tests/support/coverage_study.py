"""`nox -s coverage`: how often intervals contain the true value, and how often A/A tests find one.

For each metric and size it draws synthetic test sets from a distribution whose true value is known,
and counts the 95 % intervals that contain it. For A/A comparisons it draws two models that are
equally good, and counts the differences that are called significant. Both go through the functions
that `Trainer.test(confidence=0.95)` and `solstice.compare_models` use.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solstice import ClassificationMetrics, _comparison
from solstice.metrics import (
    BinaryMetrics,
    LanguageModelMetrics,
    Mapped,
    MetricsCollection,
    RegressionMetrics,
)
from solstice.resampling import Bootstrap

SIZES = (100, 400, 2000)
PRIOR = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
"""How frequent each of the classes is."""


@dataclass(frozen=True)
class Study:
    """One metric: `name` in the values of `metrics(*draw(rng, n))`, whose true value is `truth`."""

    name: str
    truth: float
    draw: Callable[[np.random.Generator, int], Any]
    metrics: Callable[..., Any]


def classes(rng: np.random.Generator, n: int, right: float = 0.75) -> tuple[Any, Any]:
    """Labels, and predictions that are right with this probability, and else any class."""
    labels = rng.choice(len(PRIOR), n, p=PRIOR)
    guesses = rng.integers(0, len(PRIOR), n)
    return np.where(rng.random(n) < right, labels, guesses).astype(np.int32), labels.astype(
        np.int32
    )


def of_classes(preds: Any, labels: Any) -> Any:
    return ClassificationMetrics(preds, labels, jnp.zeros(()), len(PRIOR))


def true_macro_f1(right: float = 0.75) -> float:
    chance = (1 - right) / len(PRIOR)
    hits, guessed = PRIOR * (right + chance), PRIOR * right + chance
    return float(np.mean(2 * hits / (guessed + PRIOR)))


def scores(rng: np.random.Generator, n: int, apart: float, share: float) -> tuple[Any, Any]:
    """Normal scores of two classes, the positive ones higher by `apart`."""
    labels = rng.random(n) < share
    return (rng.normal(size=n) + apart * labels).astype(np.float32), labels


def of_scores(logits: Any, labels: Any) -> Any:
    return BinaryMetrics(logits, labels, from_logits=True)


def line(rng: np.random.Generator, n: int, noise: float) -> tuple[Any, Any]:
    """Predictions, and targets around them."""
    preds = rng.normal(size=n)
    return preds.astype(np.float32), (preds + noise * rng.normal(size=n)).astype(np.float32)


def tokens(rng: np.random.Generator, n: int, words: int = 8) -> tuple[Any, Any]:
    """Logits of two words for each of 8 tokens of a text; texts differ in their difficulty."""
    logit = rng.normal(0.5, 1.0, (n, 1)) + rng.normal(0.0, 1.0, (n, words))
    logits = np.stack([logit, np.zeros_like(logit)], axis=-1).astype(np.float32)
    return logits, np.zeros((n, words), np.int32)


def true_perplexity() -> float:
    """exp(E log(1 + exp(-x))) of x ~ N(0.5, 2), by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    losses = np.log1p(np.exp(-(0.5 + math.sqrt(2) * nodes)))
    return float(np.exp(weights @ losses / weights.sum()))


NORMAL = NormalDist()
STUDIES = {
    "accuracy": Study("accuracy", 0.8, classes, of_classes),
    "macro F1": Study("f1_macro", true_macro_f1(), classes, of_classes),
    "ROC-AUC": Study(
        "roc_auc",
        NORMAL.cdf(1.5 / math.sqrt(2)),
        partial(scores, apart=1.5, share=0.3),
        of_scores,
    ),
    "recall": Study("recall", NORMAL.cdf(0.8), partial(scores, apart=0.8, share=0.4), of_scores),
    "R2": Study("r2", 1 - 0.36 / 1.36, partial(line, noise=0.6), RegressionMetrics),
    "perplexity": Study("perplexity", true_perplexity(), tokens, LanguageModelMetrics),
    "recall, rare": Study(
        "recall", NORMAL.cdf(0.8), partial(scores, apart=0.8, share=0.05), of_scores
    ),
}
ASKED = tuple(name for name in STUDIES if name != "recall, rare")


def covered(name: str, n: int, sets: int, replicates: int = 1000) -> tuple[float, float]:
    """The shares of intervals that are above the true value, and below it."""
    study, rng, missed = STUDIES[name], np.random.default_rng(n), [0, 0]
    each = jax.jit(jax.vmap(lambda *row: study.metrics(*(x[None] for x in row))))
    for index in range(sets):
        data = study.draw(rng, n)
        boot = Bootstrap(each(*data), jnp.arange(n), replicates=replicates, seed=index % 50)
        values = boot.compute()
        missed[0] += values[f"{study.name}_low"] > study.truth
        missed[1] += values[f"{study.name}_high"] < study.truth
    return missed[0] / sets, missed[1] / sets


def same_models(rng: np.random.Generator, n: int, members: int | None) -> tuple[Any, Any]:
    """Labels, and predictions of two equally good models, or of two populations of them.

    Models are alike: what is hard for one is hard for the others. Seeds differ in their quality.
    """
    labels = rng.choice(len(PRIOR), n, p=PRIOR)
    hard = rng.normal(size=(n, 1))
    count = 2 * (members or 1)
    quality = 1.2 + (0.1 * rng.normal(size=count) if members else np.zeros(count))
    right = quality + hard + rng.normal(size=(n, count)) > 0
    guesses = (labels[:, None] + rng.integers(1, len(PRIOR), (n, count))) % len(PRIOR)
    preds = np.where(right, labels[:, None], guesses).astype(np.int32)
    return preds, labels.astype(np.int32)


def of_pair(members: int | None, preds: Any, labels: Any) -> Any:
    def of(columns: Any) -> Any:
        if members is None:
            return of_classes(columns[:, 0], labels)
        return Mapped(jax.vmap(lambda column: of_classes(column, labels))(columns.T))

    half = preds.shape[1] // 2
    return MetricsCollection(a=of(preds[:, :half]), b=of(preds[:, half:]))


def false_alarms(
    n: int, members: int | None, sets: int, replicates: int = 1000
) -> dict[str, float]:
    """The share of comparisons of equal models that are significant, by metric."""
    rng, found = np.random.default_rng(n), {"accuracy": 0, "f1_macro": 0}
    each = jax.jit(jax.vmap(lambda *row: of_pair(members, *(x[None] for x in row))))
    for index in range(sets):
        data = same_models(rng, n, members)
        boot = Bootstrap(each(*data), jnp.arange(n), replicates=replicates, seed=index % 50)
        values = boot.distribution()
        for name in found:
            pair = _comparison.difference(name, values, f"a.{name}", f"b.{name}", 0.95)
            found[name] += pair.is_significant
    return {name: count / sets for name, count in found.items()}


def _row(task: tuple[str, int, int, int]) -> tuple[str, int, str, bool]:
    name, n, sets, members = task
    began = time.monotonic()
    if name in STUDIES:
        above, below = covered(name, n, sets)
        share = 1 - above - below
        text = f"{100 * share:5.1f} %   above {100 * above:.1f}, below {100 * below:.1f}"
        passed = name not in ASKED or 0.93 <= share <= 0.97
    else:
        alarms = false_alarms(n, members or None, sets)
        text = ", ".join(f"{key} {100 * share:.1f} %" for key, share in alarms.items())
        passed = all(0.035 <= share <= 0.065 for share in alarms.values())
    return name, n, f"{text}   ({time.monotonic() - began:.0f} s)", passed


def tasks(options: argparse.Namespace) -> Iterator[tuple[str, int, int, int]]:
    """The rows of the table: a name, a size, the number of sets, and of members."""
    for name in options.metrics:
        yield from ((name, n, options.sets, 0) for n in options.sizes)
    for n in options.sizes if options.same else ():
        yield "A/A, two models", n, options.sets, 0
        yield "A/A, 5 seeds each", n, options.sets, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=1000, help="synthetic test sets")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="examples in a set")
    parser.add_argument("--metrics", nargs="*", default=STUDIES, choices=STUDIES)
    parser.add_argument("--no-same", dest="same", action="store_false", help="no A/A comparisons")
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 8))
    options = parser.parse_args()
    failed = False
    with ProcessPoolExecutor(options.processes) as pool:
        for name, n, text, passed in pool.map(_row, tasks(options)):
            failed |= not passed
            print(f"{name:20}{n:6}   {text}{'' if passed else '   FAILED'}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
