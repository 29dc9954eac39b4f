"""The Metrics base class, and how a step's outs become one."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice._sums import Counts, Totals, at_least_float32
from solstice._types import Batch, Outs


class Metrics(eqx.Module):
    """Counts and sums of one batch that merge into those of an epoch.

    ```python
    class Accuracy(solstice.Metrics):
        correct: jax.Array
        count: jax.Array

        def __init__(self, preds, labels):
            self.correct = jnp.sum(preds == labels)
            self.count = jnp.asarray(preds.shape[0])

        def merge(self, other):
            return solstice.replace(
                self, correct=self.correct + other.correct, count=self.count + other.count
            )

        def compute(self):
            return {"accuracy": self.correct / self.count}
    ```

    Keep what adds up (sums, counts, maxima), and divide only in `compute`: then a metric over
    an epoch is the metric of all its examples, whatever the batch sizes. What configures the
    metric (a number of classes, a name) is an `equinox.field(static=True)`.
    """

    @abstractmethod
    def merge(self, other: Any, /) -> Self:
        """`total = total.merge(batch_metrics)`: the metrics of both sets of examples.

        `other` is of the same class.
        Must be associative, and must work under `jax.jit`, in `jax.lax.scan` and on the host.
        """

    @abstractmethod
    def compute(self) -> Mapping[str, Any]:
        """`metrics.compute()["accuracy"]`: the final values by name, scalars or arrays."""


class Means(Metrics):
    """The mean of each named scalar over examples: what a mapping of scalars becomes."""

    sums: Totals
    count: Counts

    def merge(self, other: Self, /) -> Self:
        return type(self)(self.sums + other.sums, self.count + other.count)

    def compute(self) -> dict[str, Any]:
        count = self.count.floats(np)["count"]
        with np.errstate(invalid="ignore"):  # of no examples it is NaN
            return {name: total / count for name, total in self.sums.floats(np).items()}


def as_metrics(outs: Outs, batch: Batch) -> Metrics | None:
    """Metrics as they are, a mapping of scalars as `Means` weighted by examples, else None."""
    if isinstance(outs, Metrics):
        return outs
    if not _is_mapping_of_scalars(outs):
        return None
    count = num_examples(batch)
    sums = {name: _times(value, count) for name, value in outs.items()}
    return Means(Totals(sums), Counts({"count": count}))


def _times(value: Any, count: int) -> Array:
    """What so many examples add: nothing where there are none, whose mean is often NaN."""
    value = at_least_float32(value)
    return value * count if count else jnp.zeros_like(value)


def num_examples(batch: Batch) -> int:
    """The length of axis 0 of the first array of `batch` that has one; 1 if none has."""
    return next((leaf.shape[0] for leaf in jax.tree.leaves(batch) if np.ndim(leaf) > 0), 1)


def to_host(metrics: Metrics | None) -> dict[str, Any]:
    """The computed values read back: scalars as Python numbers, the rest as NumPy arrays."""
    if metrics is None:
        return {}
    computed = dict(metrics.compute())
    values = jax.device_get(list(computed.values()))  # one transfer, and the order is kept
    return {name: _plain(value) for name, value in zip(computed, values, strict=True)}


def _plain(value: Any) -> Any:
    return np.asarray(value).item() if np.ndim(value) == 0 else np.asarray(value)


def _is_mapping_of_scalars(outs: Outs) -> TypeGuard[Mapping[str, Any]]:
    if not isinstance(outs, Mapping) or not outs:
        return False
    values: list[Any] = list(outs.values())  # pyright: ignore[reportUnknownArgumentType]
    return all(
        isinstance(value, bool | int | float | np.generic)
        or (isinstance(value, Array | np.ndarray) and value.ndim == 0)
        for value in values
    )
