"""Weighted counts: the numbers of a metric whose examples have weights."""

from collections.abc import Mapping
from typing import Any, Self, TypeGuard

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from solstice._sums import Counts, Totals, Words


class WeightedCounts(eqx.Module):
    """`sums_of({"correct": weights @ correct, "num_nan": jnp.sum(nan)})`: sums of weights, counts.

    It has the methods of `Counts`, so a metric has one field for both.
    """

    totals: Totals
    """Sums of weights."""
    counts: Counts
    """Numbers of examples, such as "num_nan", which have no weights."""

    def __add__(self, other: Self) -> Self:
        return type(self)(self.totals + other.totals, self.counts + other.counts)

    def values(self) -> dict[str, Any]:
        """`numbers.values()["correct"]`: floats and integers by name."""
        return {**Totals.values(self.totals), **Counts.values(self.counts)}

    def floats(self, xp: object = jnp) -> dict[str, Any]:
        """All numbers in floating point; in float64 if `xp` is NumPy."""
        return {**Totals.floats(self.totals, xp), **Counts.floats(self.counts, xp)}


def sums_of(numbers: Mapping[str, Array | Words]) -> Counts | WeightedCounts:
    """The numbers of a metric: integers are counts, and floats are sums of weights."""
    weighted = {n: x for n, x in numbers.items() if _is_weighted(x)}
    counts = Counts({n: x for n, x in numbers.items() if not _is_weighted(x)})
    return WeightedCounts(Totals(weighted), counts) if weighted else counts


def exact_of(numbers: Counts | WeightedCounts) -> dict[str, Any]:
    """The numbers of examples without weights, as exact integers."""
    # By the class, because Equinox makes a module of a method that is read from a module.
    return Counts.values(numbers.counts if isinstance(numbers, WeightedCounts) else numbers)


def values_of(numbers: Counts | WeightedCounts) -> dict[str, Any]:
    """All numbers, floats and integers by name."""
    if isinstance(numbers, WeightedCounts):
        return WeightedCounts.values(numbers)
    return Counts.values(numbers)


def _is_weighted(number: Array | Words) -> TypeGuard[Array]:
    return not isinstance(number, Words) and jnp.issubdtype(number.dtype, jnp.inexact)
