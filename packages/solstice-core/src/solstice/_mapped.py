"""Mapped: the metrics of each member of a population."""

from typing import Any, Self, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from solstice import _tree
from solstice._arguments import instance, integers, whole_or_none
from solstice._metrics import Metrics, by_name, computed, takes_members
from solstice._per_member import placed
from solstice._replace import replace
from solstice._sums import Counts, Totals, at_least_float32


class Mapped(Metrics):
    """`Mapped(jax.vmap(metrics_of)(members, batch))`: the metrics of each member of a population.

    ```python
    each = jax.vmap(lambda member: member.eval_step(batch))(members)  # Metrics of arrays [N, ...]
    values = Mapped(each).compute()["accuracy"]  # [N], one for each member
    ```

    `compute()` returns each value of the inner metrics with the members on axis 0, as a `PerMember`
    array: a float64 array if the values are real numbers. If arrays of the members differ in shape,
    such as curves with another number of points, the shorter ones end in NaN. A population shows
    these values per member in histories, plots, bars and files.

    Args:
        metrics: Metrics whose arrays have the members on axis 0, as `jax.vmap` makes them.
        ids: the number of each member, integers of shape [N], if others have been removed;
            0 to N - 1 by default.
        size: how many members there were at first. The values of removed ones are NaN.

    Raises:
        TypeError: `metrics` is not a Metrics, or `ids` are not integers.
        ValueError: the arrays do not have the same length on axis 0, or `ids` are of another
            length, or only one of `ids` and `size` is given, or `size` is below N; or metrics of
            different numbers of members are merged.
    """

    can_raise = False  # beyond the inner metrics
    metrics: Metrics
    ids: Array | None
    size: int = eqx.field(static=True)

    def __init__(
        self, metrics: Metrics, *, ids: ArrayLike | None = None, size: int | None = None
    ) -> None:
        self.metrics = instance(
            "metrics", metrics, Metrics, "Metrics, such as `jax.vmap(Mean)(losses)`"
        )
        number = _length(metrics)
        if (ids is None) != (size is None):
            raise ValueError("give `ids` and `size` together: `Mapped(metrics, ids=ids, size=16)`")
        self.ids = None if ids is None else jnp.asarray(integers("ids", ids))
        self.size = whole_or_none("size", size, number, "members") or number
        if self.ids is not None and self.ids.shape != (number,):
            raise ValueError(
                f"ids must be a number for each of {number} members; they are of shape "
                f"{list(self.ids.shape)}"
            )

    def __len__(self) -> int:
        return _length(self.metrics)

    def merge(self, other: Any, /) -> Self:
        """`total = total.merge(metrics)`: merges the metrics of each member.

        Raises:
            ValueError: `other` has another number of members.
        """
        if not isinstance(other, Mapped) or (len(self), self.size) != (len(other), other.size):
            raise ValueError(
                f"cannot merge Mapped of {len(self)} members and {_described(other)}: the steps "
                f"of an epoch must have the same members"
            )
        return _with_metrics(self, jax.vmap(_merged)(self.metrics, other.metrics))

    def empty(self) -> Self:
        """`metrics.empty()`: metrics of zero examples; the inner metrics need an `empty`."""
        return _with_metrics(self, jax.vmap(_emptied)(self.metrics))

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["accuracy"]`: the values of the members, of shape [N, ...]."""
        if any(isinstance(leaf, Tracer) for leaf in _tree.leaves(self)):
            return _traced(self)
        ids, metrics = jax.device_get((self.ids, self.metrics))  # one transfer
        found = _together(metrics) if takes_members(metrics) else _one_by_one(metrics)
        return {name: placed(ids, each, self.size) for name, each in found.items()}


def alone(like: Any) -> Any:
    """The shapes of metrics with those of one member in place of each `Mapped`.

    Its values are named like those of all, and those that are numbers have no axis.
    """

    def of_one(node: Any) -> Any:
        return _tree.map(_without_members, node.metrics) if is_mapped(node) else node

    def is_mapped(node: object) -> bool:
        return isinstance(node, Mapped)

    return jax.tree.map(of_one, like, is_leaf=is_mapped)


def _without_members(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


# Functions and no methods: Equinox makes a module of each method that is read from a module.


def _length(metrics: Metrics) -> int:
    """The number of members: the length of all arrays on axis 0."""
    shapes = {
        path: [*(_words(leaf).shape[:-2] if _is_sums(leaf) else np.shape(leaf))]
        for path, leaf in _tree.leaves_with_slashes(metrics, _is_sums)
    }
    found = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(found) == 1 and (number := found.pop()):
        return number
    raise ValueError(
        f"the arrays of metrics must have the members on axis 0, as `jax.vmap` makes them; "
        f"their shapes are {shapes!s:.200}"
    )


def _is_sums(node: object) -> TypeGuard[Counts | Totals]:
    return isinstance(node, Counts | Totals)


def _words(sums: Counts | Totals) -> Array:
    (words,) = sums.words.values()
    return words


def _described(other: object) -> str:
    return f"of {len(other)}" if isinstance(other, Mapped) else type(other).__name__


def _with_metrics(mapped: Mapped, metrics: Metrics) -> Any:
    return replace(mapped, metrics=metrics)


def _merged(one: Metrics, other: Metrics) -> Metrics:
    return one.merge(other)


def _emptied(metrics: Any) -> Metrics:
    return metrics.empty()


def _traced(mapped: Mapped) -> dict[str, Any]:
    """The values while JAX traces, in JAX's dtypes."""
    values = by_name(jax.vmap(computed)(mapped.metrics))
    if mapped.ids is None:
        return values
    return {name: _at(mapped.ids, value, mapped.size) for name, value in values.items()}


def _at(ids: Array, values: Array, size: int) -> Array:
    """The values at the places of their members; NaN elsewhere."""
    values = at_least_float32(values)
    return jnp.full((size, *values.shape[1:]), jnp.nan, values.dtype).at[ids].set(values)


def _together(metrics: Metrics) -> dict[str, np.ndarray[Any, Any]]:
    """The values of all members by one call."""
    values = by_name(computed(metrics))
    return {name: _in_float64(np.asarray(value)) for name, value in values.items()}


def _one_by_one(metrics: Metrics) -> dict[str, np.ndarray[Any, Any]]:
    """The values of all members by a call for each."""
    rows = [by_name(computed(_tree.row(metrics, index))) for index in range(_length(metrics))]
    if any(isinstance(value, jax.Array) for value in rows[0].values()):
        rows = jax.device_get(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _stacked([row.get(name, np.nan) for row in rows]) for name in names}


def _stacked(values: list[Any]) -> np.ndarray[Any, Any]:
    """The values of the members as one array: real numbers in float64."""
    try:
        found = np.array(values)
    except ValueError:  # arrays of several shapes
        return _padded([np.asarray(value, np.float64) for value in values])
    return _in_float64(found)


def _in_float64(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Real numbers in float64; others, such as text, as objects."""
    is_real = any(jnp.issubdtype(values.dtype, kind) for kind in (bool, jnp.integer, jnp.floating))
    return values.astype(np.float64 if is_real else object)


def _padded(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Arrays of several shapes as one array; the shorter ones end in NaN."""
    depth = max(array.ndim for array in arrays)
    shapes = [array.shape for array in arrays if array.ndim == depth]
    longest = [max(lengths) for lengths in zip(*shapes, strict=True)]
    found = np.full((len(arrays), *longest), np.nan)
    for row, array in zip(found, arrays, strict=True):
        row[tuple(map(slice, array.shape))] = array
    return found
