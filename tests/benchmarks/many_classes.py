"""`nox -s bench_metrics`: what classification metrics of very many classes cost.

20,000 rows in batches of 1,000 are scored in turn by Solstice (one compiled construct and merge a
batch, then `compute`), by scikit-learn (`classification_report` and `accuracy_score` of all rows at
once) and, with `--with-torch`, by torchmetrics (a `MetricCollection`, updated with each batch). All
give accuracy, and precision, recall and F1 of each class, macro and weighted; Solstice gives
Cohen's kappa and Matthews' correlation too.

Printed are the medians in milliseconds, and how often the total of Solstice in the same round each
contender takes. Each has the rows as arrays of its own, and is warmed up outside of the clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import accuracy_score, classification_report

from solstice import ClassificationMetrics

ROWS, BATCH = 20_000, 1_000
MEMORY = 4 * 2**30
"""Bytes that a contender may ask for at once."""


class Workload(NamedTuple):
    """Labels, and predicted classes or a score for each class."""

    name: str
    num_classes: int
    preds: np.ndarray
    labels: np.ndarray


class Contender(NamedTuple):
    """Two steps, which are timed one by one, and what to find the accuracy by."""

    update: Callable[[], Any]
    """Takes in all batches."""
    compute: Callable[[Any], dict[str, Any]]
    """What was taken in, in numbers: "accuracy" among others."""


def workloads() -> list[Workload]:
    rng = np.random.default_rng(0)

    def classes(num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, num_classes, ROWS).astype(np.int32)
        guesses = rng.integers(0, num_classes, ROWS).astype(np.int32)
        return np.where(rng.random(ROWS) < 0.7, labels, guesses), labels

    preds, labels = classes(1_000)
    scores = rng.random((ROWS, 1_000), np.float32)
    scores[np.arange(ROWS), preds] += 1
    return [
        Workload("1,000 classes, predictions", 1_000, preds, labels),
        Workload("1,000 classes, scores", 1_000, scores, labels),
        Workload("100,000 classes, predictions", 100_000, *classes(100_000)),
    ]


def batches(workload: Workload, convert: Callable[[np.ndarray], Any]) -> list[tuple[Any, Any]]:
    ends = range(BATCH, ROWS, BATCH)
    parts = (np.split(values, ends) for values in (workload.preds, workload.labels))
    return [(convert(preds), convert(labels)) for preds, labels in zip(*parts, strict=True)]


def of_solstice(workload: Workload) -> Contender:
    data, step = batches(workload, jnp.asarray), solstice_step(workload)
    nothing = empty(workload)

    def update() -> Any:
        total = nothing
        for batch in data:
            total = step(total, *batch)
        return jax.block_until_ready(total)

    return Contender(update, lambda total: total.compute())


def solstice_step(workload: Workload) -> Any:
    """One batch's metrics, merged into those before it."""

    @jax.jit
    def step(total: Any, preds: Any, labels: Any) -> Any:
        return total.merge(ClassificationMetrics(preds, labels, 0.0, workload.num_classes))

    return step


def empty(workload: Workload) -> Any:
    rows = workload.preds[:1], workload.labels[:1]
    return ClassificationMetrics(*rows, 0.0, workload.num_classes).empty()


def of_sklearn(workload: Workload) -> Contender:
    preds, labels = workload.preds, workload.labels

    def update() -> Any:
        return preds.argmax(1) if preds.ndim == 2 else preds

    def compute(classes: Any) -> dict[str, Any]:
        report = classification_report(
            labels, classes, labels=range(workload.num_classes), output_dict=True, zero_division=0
        )
        return {**report, "accuracy": accuracy_score(labels, classes)}

    return Contender(update, compute)


def of_torchmetrics(workload: Workload) -> Contender | None:
    """None where it would need too much memory: it counts each pair of classes, in int64."""
    if 8 * workload.num_classes**2 > MEMORY:
        return None
    import torch

    collection = torchmetrics_of(workload.num_classes)
    data = [
        (preds, labels.long())
        for preds, labels in batches(workload, lambda values: torch.from_numpy(values.copy()))
    ]

    def update() -> Any:
        collection.reset()
        for batch in data:
            collection.update(*batch)
        return collection

    return Contender(update, lambda collection: collection.compute())


def torchmetrics_of(num_classes: int) -> Any:
    """The same numbers; what they count they share."""
    from torchmetrics import MetricCollection, classification

    options = {"num_classes": num_classes, "validate_args": False}
    kinds = {
        "precision": classification.MulticlassPrecision,
        "recall": classification.MulticlassRecall,
        "f1": classification.MulticlassF1Score,
    }
    parts = {
        f"{name}_{average}": kind(average=average, **options)
        for name, kind in kinds.items()
        for average in ("none", "macro", "weighted")
    }
    accuracy = classification.MulticlassAccuracy(average="micro", **options)
    return MetricCollection({"accuracy": accuracy, **parts})


CONTENDERS = {"solstice": of_solstice, "scikit-learn": of_sklearn}


def timed(contender: Contender) -> tuple[float, float, float]:
    """Milliseconds for all batches, for the numbers, and in total."""
    start = time.perf_counter()
    taken = contender.update()
    between = time.perf_counter()
    contender.compute(taken)
    end = time.perf_counter()
    return 1e3 * (between - start), 1e3 * (end - between), 1e3 * (end - start)


def measure(contenders: dict[str, Contender], rounds: int) -> dict[str, list[Any]]:
    """The times of each round, in an order drawn anew; first, that they give one accuracy."""
    found = {name: one.compute(one.update())["accuracy"] for name, one in contenders.items()}
    for name, accuracy in found.items():
        assert abs(float(accuracy) - float(found["solstice"])) < 1e-6, (name, found)
    order = np.random.default_rng(0)
    times: dict[str, list[Any]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in order.permutation(list(contenders)):
            times[name].append(timed(contenders[name]))
    return times


def show(workload: Workload, times: dict[str, list[Any]]) -> None:
    print(f"\n{workload.name}, {ROWS:,} rows")
    print(f"{'':14}{'batches':>10}{'compute':>10}{'total':>10}{'ratio':>10}")
    totals = [total for *_, total in times["solstice"]]
    for name, rounds in times.items():
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        ratios = [total / base for (*_, total), base in zip(rounds, totals, strict=True)]
        numbers = "".join(f"{number:10.1f}" for number in medians)
        print(f"{name:14}{numbers}{statistics.median(ratios):10.2f}")


def show_memory(workload: Workload) -> None:
    state = empty(workload)
    first = workload.preds[:BATCH], workload.labels[:BATCH]
    needs = solstice_step(workload).lower(state, *first).compile().memory_analysis()
    extra = needs.output_size_in_bytes + needs.temp_size_in_bytes
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"Solstice holds {held:,} bytes; while it takes in a batch, {extra:,} more")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--with-torch", action="store_true", help="measure torchmetrics too")
    parser.add_argument("--rounds", type=int, default=15, help="how often each is timed")
    options = parser.parse_args()
    makers = dict(CONTENDERS)
    if options.with_torch:
        makers["torchmetrics"] = of_torchmetrics
    print(f"milliseconds, medians of {options.rounds} rounds")
    for workload in workloads():
        made = {name: make(workload) for name, make in makers.items()}
        contenders = {name: one for name, one in made.items() if one is not None}
        show(workload, measure(contenders, options.rounds))
        for name in made.keys() - contenders.keys():
            gigabytes = 8 * workload.num_classes**2 / 1e9
            print(f"{name:14} not run: it counts pairs of classes, in {gigabytes:,.0f} GB")
        show_memory(workload)


if __name__ == "__main__":
    main()
