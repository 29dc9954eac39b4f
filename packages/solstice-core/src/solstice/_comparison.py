"""compare_models: whether one model is really better than another on a test set."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np

from solstice._arguments import instance
from solstice._engine import MeshLike, Sharding
from solstice._experiment import Experiment
from solstice._metrics import Metrics, as_metrics
from solstice._replace import replace
from solstice._trainer import Trainer
from solstice._types import Batch, Dataset, Outputs
from solstice.history import History
from solstice.resampling import (
    Bootstrap,
    Distribution,
    Resampled,
    interval,
    p_value,
    quantile_of_t,
    tails_of_t,
)

_Numpy: TypeAlias = np.ndarray[Any, Any]

_MANY = 1e6
"""Degrees of freedom at which Student's t is normal."""

_OF_EACH = re.compile(r"_(class|label)_\d+$")


@dataclass(frozen=True)
class Difference:
    """`solstice.compare_models(a, b, test_ds)["accuracy"]`: one metric of two models.

    Attributes:
        name: the metric.
        a, b: its values; of populations the means over their members.
        difference: a - b.
        low, high: the interval of the difference.
        p: the p-value of no difference, two-sided.
        confidence: that of the interval.
    """

    name: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    confidence: float

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        found = "significant" if self.is_significant else "not significant"
        return (
            f"{self.name}: {self.a:.4g} against {self.b:.4g}. The difference, "
            f"{self.difference:+.4g} ({100 * self.confidence:g} % interval {self.low:+.4g} to "
            f"{self.high:+.4g}, {p}), is {found}."
        )


class Comparison(Mapping[str, Difference]):
    """`comparison["accuracy"]`: a `Difference` for each metric that is a float.

    `print(comparison)` shows a sentence for each, without those of single classes.
    """

    def __init__(self, differences: Mapping[str, Difference]) -> None:
        self._differences = dict(differences)

    def __getitem__(self, name: str) -> Difference:
        if name not in self._differences:
            there = ", ".join(self._differences) or "none"
            raise KeyError(f"there is no metric {name!r} of both models; there are: {there}")
        return self._differences[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._differences)

    def __len__(self) -> int:
        return len(self._differences)

    def __repr__(self) -> str:
        shown = [d for name, d in self._differences.items() if not _OF_EACH.search(name)]
        return "\n".join(map(str, shown))


def compare_models(
    a: Experiment,
    b: Experiment,
    test_ds: Dataset,
    *,
    batch_size: int | None = None,
    confidence: float = 0.95,
    replicates: int = 1000,
    mesh: MeshLike | None = None,
    sharding: Sharding = "replicated",
) -> Comparison:
    """`print(solstice.compare_models(exp_a, exp_b, test_ds))`: is the difference significant?

    Both models are evaluated in one pass over the test set, and share its replicates (see
    `Resampled`), so the comparison is paired by example: what is hard for both cancels out.

    Of two populations whose members differ in their seeds, the means over the members are
    compared. Their interval is for new seeds as well as for a new test set: the variance is that of
    the paired replicates, plus the variance between members beyond what the test set explains,
    divided by their number; with Student's t, by Welch's degrees of freedom.

    Args:
        a: an Experiment, or a population.
        b: another one of the same kind.
        test_ds: the data set.
        batch_size: examples per batch, for a data set given as arrays.
        confidence: that of the intervals, in (0, 1).
        replicates: number of replicates of the data set, 20 or more.
        mesh: the devices, as in `Trainer`.
        sharding: how the Experiments lie on them, as in `Trainer`.

    Returns:
        A `Difference` of each metric of both that is a float, by name.

    Raises:
        TypeError: one is not an Experiment, or only one of them is a population.
        ExperimentError: the metrics of a batch are not those of its examples.
    """
    pair = _Pair(_checked("a", a), _checked("b", b))
    resampled = Resampled(pair, confidence=confidence, replicates=replicates)
    # With a history that keeps large arrays, because that of a Trainer warns of them.
    trainer = Trainer([History()], mesh=mesh, sharding=sharding)
    values = trainer.test(_Replicates(resampled), test_ds, batch_size=batch_size)
    found = _All.distribution_in(values)
    names = [name[2:] for name in found.replicates if name.startswith("a/")]
    return Comparison(
        {
            name: difference(name, found, f"a/{name}", f"b/{name}", confidence)
            for name in names
            if f"b/{name}" in found.replicates and found.replicates[f"a/{name}"].ndim <= 2
        }
    )


def _checked(name: str, experiment: object) -> Experiment:
    return instance(name, experiment, Experiment, "a solstice.Experiment")


class _Pair(Experiment):
    """Evaluates two Experiments on the same batches."""

    a: Experiment
    b: Experiment

    def train_step(self, batch: Batch) -> tuple[Self, Outputs]:
        raise NotImplementedError

    def setup(self, batch: Batch) -> Self:
        return replace(self, a=self.a.setup(batch), b=self.b.setup(batch))

    def check_batch(self, batch: Batch) -> None:
        self.a.check_batch(batch)
        self.b.check_batch(batch)

    def eval_step(self, batch: Batch) -> tuple[Self, Outputs]:
        both = {"a": self.a, "b": self.b}
        return self, {n: as_metrics(exp.eval_step(batch)[1], batch) for n, exp in both.items()}


class _Replicates(Experiment):
    """A `Resampled` whose metrics give their replicates in place of bounds."""

    wrapped: Resampled[_Pair]

    def train_step(self, batch: Batch) -> tuple[Self, Outputs]:
        raise NotImplementedError

    def setup(self, batch: Batch) -> Self:
        return replace(self, wrapped=self.wrapped.setup(batch))

    def check_batch(self, batch: Batch) -> None:
        self.wrapped.check_batch(batch)

    def eval_step(self, batch: Batch) -> tuple[Self, Outputs]:
        wrapped, metrics = self.wrapped.eval_step(batch)
        found = _All(metrics) if isinstance(metrics, Bootstrap) else None
        return replace(self, wrapped=wrapped), found


class _All(Metrics):
    """The values of a data set and of its replicates."""

    bootstrap: Bootstrap

    def merge(self, other: Self, /) -> Self:
        return type(self)(self.bootstrap.merge(other.bootstrap))

    def of_steps(self, count: int) -> Self:
        return type(self)(self.bootstrap.of_steps(count))

    def compute(self) -> dict[str, Any]:
        found = self.bootstrap.distribution()
        each = {f"replicates/{name}": values for name, values in found.replicates.items()}
        return {**found.estimates, **each, "num_examples": found.num_examples}

    @staticmethod
    def distribution_in(values: Mapping[str, Any]) -> Distribution:
        """The distribution in what `compute` has returned."""
        start = "replicates/"
        each = {n.removeprefix(start): v for n, v in values.items() if n.startswith(start)}
        return Distribution.of(values, each, values.get("num_examples", 0))


def difference(name: str, found: Distribution, a: str, b: str, confidence: float) -> Difference:
    """The difference of two values of one distribution: scalars, or one for each member.

    Raises:
        TypeError: only one of them has members.
    """
    one, other = _Side.of(found, a), _Side.of(found, b)
    if one.value.ndim != other.value.ndim:
        raise TypeError(
            "compare two Experiments, or two populations: a single Experiment does not show how "
            "its seeds vary"
        )
    if one.value.ndim == 1:
        return _of_populations(name, one, other, confidence)
    value, each = float(one.value - other.value), one.replicates - other.replicates
    low, high = interval(value, each, confidence, found.num_examples)
    p = p_value(value, each, found.num_examples)
    return Difference(
        name,
        float(one.value),
        float(other.value),
        value,
        float(low),
        float(high),
        float(p),
        confidence,
    )


@dataclass(frozen=True)
class _Side:
    """A metric of one model, or of the members of a population on the last axis."""

    value: _Numpy
    replicates: _Numpy

    @staticmethod
    def of(found: Distribution, name: str) -> "_Side":
        """The metric of this name, without members that have been removed."""
        value, each = np.asarray(found.estimates[name]), found.replicates[name]
        if value.ndim == 0:
            return _Side(value, each)
        there = ~np.isnan(value)
        return _Side(value[there], each[:, there])


def _of_populations(name: str, a: _Side, b: _Side, confidence: float) -> Difference:
    means = float(a.value.mean()), float(b.value.mean())
    value = means[0] - means[1]
    of_test_set = float(np.var(a.replicates.mean(axis=1) - b.replicates.mean(axis=1)))
    of_seeds = [_variance_of_seeds(side) for side in (a, b)]
    total = of_test_set + sum(of_seeds)
    # Welch's degrees of freedom; the variance of the test set has very many.
    parts = sum(
        part**2 / (len(side.value) - 1) for part, side in zip(of_seeds, (a, b), strict=True) if part
    )
    error, degrees = math.sqrt(total), min(total**2 / parts, _MANY) if parts else _MANY
    reach = quantile_of_t((1 + confidence) / 2, degrees) * error
    p = tails_of_t(abs(value) / error, degrees) if error > 0 else float(value == 0)
    return Difference(name, *means, value, value - reach, value + reach, p, confidence)


def _variance_of_seeds(side: _Side) -> float:
    """The variance of the mean over members that comes from their seeds; NaN of one member."""
    number = len(side.value)
    if number < 2:
        return math.nan
    apart = side.replicates - side.replicates.mean(axis=1, keepdims=True)
    by_test_set = float(apart.var(axis=0).sum()) / (number - 1)
    return max(float(side.value.var(ddof=1)) - by_test_set, 0.0) / number
