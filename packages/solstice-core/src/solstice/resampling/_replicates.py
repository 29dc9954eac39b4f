"""The metrics of a data set and of its replicates, from the metrics of each example."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeAlias, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._engine import adds_only
from solstice._metrics import Metrics
from solstice._replace import replace
from solstice._sums import Counts, Totals
from solstice._types import AnyArray
from solstice.resampling._weights import STATES, poisson_weights

_ROWS = 1024
"""The most examples in one compiled call: weights of 1,000 replicates take 4 MB."""

_Numpy: TypeAlias = np.ndarray[Any, Any]


def resampled(
    examples: Metrics, index: _Numpy, replicates: int, seed: int
) -> tuple[Metrics, Metrics]:
    """The metrics of all examples, and those of each replicate, with the replicates on axis 0.

    Args:
        examples: the metrics of each example, NumPy arrays with the examples on axis 0.
        index: the number of each example in the data set.
        replicates: number of replicates.
        seed: that of the weights.

    Raises:
        TypeError: merging changes the shapes of the metrics.
    """
    one = _tree.row(examples, 0)
    if adds_only(one):
        return _summed(examples, index, replicates, seed)
    if not _keeps_shapes(one):
        raise TypeError(
            f"{type(one).__name__} keeps the outputs of all examples, so that its replicates do "
            f"not fit in memory: use metrics of a fixed size, such as BinaryMetrics in place of "
            f"BinaryCurves"
        )
    return _merged(examples, index, replicates, seed)


def _keeps_shapes(one: Metrics) -> bool:
    merged = cast("Any", eqx.filter_eval_shape)(_twice, one)
    return [x.shape for x in _tree.leaves(merged)] == [np.shape(x) for x in _tree.leaves(one)]


def _twice(metrics: Metrics) -> Metrics:
    return metrics.merge(metrics)


# Metrics that add: one matrix product of weights and examples.


def _summed(
    examples: Metrics, index: _Numpy, replicates: int, seed: int
) -> tuple[Metrics, Metrics]:
    nodes, structure = cast("Any", jax.tree.flatten(examples, is_leaf=_is_sums))
    key = np.uint32(seed)
    parts: Any = [
        _weighted(key, *_filled(rows, index, nodes), replicates) for rows in _slices(index)
    ]
    # In double precision, since each part rounds only its own sums.
    totals = sum(np.asarray(part, np.float64) for part in jax.device_get(parts))
    sums = [_sum(node) for node in nodes]
    ends = np.cumsum([x.size for x in sums])[:-1]
    each = [
        _like(node, part.reshape(replicates, *x.shape))
        for node, x, part in zip(nodes, sums, np.split(totals, ends, axis=1), strict=True)
    ]
    whole = [_like(node, x) for node, x in zip(nodes, sums, strict=True)]
    return jax.tree.unflatten(structure, whole), jax.tree.unflatten(structure, each)


@partial(jax.jit, static_argnums=3)
def _weighted(seed: Array, index: Array, nodes: list[Any], replicates: int) -> Array:
    weights = poisson_weights(index, replicates, seed)
    columns = [_numbers(node).reshape(len(index), -1) for node in nodes]
    # Not in the half precision that accelerators choose for float32.
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(weights, jnp.concatenate(columns, axis=1), precision=highest)


def _is_sums(node: object) -> bool:
    return isinstance(node, Counts | Totals)


def _words(node: Counts | Totals) -> tuple[Any, Any]:
    (words,) = node.words.values()
    return words[..., 0, :], words[..., 1, :]


def _numbers(node: Any) -> Array:
    """An array, `Counts` or `Totals` of each example in float32."""
    if not _is_sums(node):
        return node.astype(jnp.float32)
    low, high = _words(node)
    if isinstance(node, Counts):
        high = high.astype(jnp.int32).astype(jnp.float32) * 2.0**32
    return low.astype(jnp.float32) + high


def _sum(node: Any) -> _Numpy:
    """The sum over the examples, exact for integers, and else in float64."""
    add: Any = np.sum  # whose types differ by the version of NumPy
    if not _is_sums(node):
        return add(node, axis=0, dtype=_wide(node))
    low, high = _words(node)
    if isinstance(node, Counts):
        return add(low, 0, np.int64) + (add(high.view(np.int32), 0, np.int64) << 32)
    return add(low, 0, np.float64) + add(high, 0, np.float64)


def _wide(array: AnyArray) -> Any:
    return np.float64 if jnp.issubdtype(array.dtype, jnp.floating) else np.int64


def _like(node: Any, totals: _Numpy) -> Any:
    """Totals in the form of a node."""
    if not _is_sums(node):
        return totals.astype(node.dtype)
    ((key, words),) = node.words.items()
    if isinstance(node, Counts):
        whole = totals if totals.dtype == np.int64 else np.rint(totals).astype(np.int64)
        low, high = whole & 0xFFFFFFFF, whole >> 32 & 0xFFFFFFFF
    else:
        low = totals.astype(words.dtype)
        high = np.where(np.isfinite(low), totals - low, 0)
    stacked = np.stack([low, high], axis=-2).astype(words.dtype)
    return replace(node, words={key: stacked})


# Other metrics: each example is merged into the replicates as often as its weight says.


def _merged(
    examples: Metrics, index: _Numpy, replicates: int, seed: int
) -> tuple[Metrics, Metrics]:
    leaves, structure = _tree.flatten(examples)
    run = _merging(structure, replicates)
    state = None
    for rows in _slices(index):
        state = run(state, np.uint32(seed), len(index[rows]), *_filled(rows, index, leaves))
    metrics = _tree.unflatten(structure, jax.device_get(state)[0])
    return _tree.row(metrics, 0), _tree.row(metrics, slice(1, None))


@lru_cache(maxsize=32)
def _merging(structure: Any, replicates: int) -> Callable[..., Any]:
    """The compiled merge of some examples; row 0 is the data set itself."""

    def merge(one: list[Array], other: list[Array]) -> list[Array]:
        both = _tree.unflatten(structure, one).merge(_tree.unflatten(structure, other))
        return _tree.leaves(both)

    def add(state: Any, example: Any) -> Any:
        (total, is_there), (weights, powers) = state, example
        given = [power[jnp.maximum(weights, 1) - 1] for power in powers]
        both = jax.vmap(merge)(total, given)
        new = [_where(is_there, m, g) for m, g in zip(both, given, strict=True)]
        takes = weights > 0
        total = [_where(takes, n, t) for n, t in zip(new, total, strict=True)]
        return (total, is_there | takes), None

    @jax.jit
    def run(state: Any, seed: Array, count: Array, index: Array, leaves: list[Array]) -> Any:
        weights = poisson_weights(index, replicates, seed).astype(jnp.int32)
        weights = jnp.concatenate([jnp.ones((1, len(index)), jnp.int32), weights])
        weights = jnp.where(jnp.arange(len(index))[None] < count, weights, 0)
        repeated = [leaves]
        for _ in STATES[2:]:
            repeated.append(jax.vmap(merge)(repeated[-1], leaves))
        powers = [jnp.stack(same, axis=1) for same in zip(*repeated, strict=True)]
        if state is None:
            zeros = [jnp.zeros((len(weights), *x.shape[1:]), x.dtype) for x in leaves]
            state = zeros, jnp.zeros(len(weights), bool)
        return jax.lax.scan(add, state, (weights.T, powers))[0]

    return run


def _where(condition: Array, one: Array, other: Array) -> Array:
    return jnp.where(condition.reshape(-1, *[1] * (one.ndim - 1)), one, other)


def _slices(index: _Numpy) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, len(index), _ROWS)]


def _filled(rows: slice, index: _Numpy, examples: Any) -> tuple[AnyArray, Any]:
    """Some examples, with zeros after the last ones: a power of two, so few programs do."""
    count = len(index[rows])
    more = 2 ** (count - 1).bit_length() - count

    def filled(array: _Numpy) -> _Numpy:
        part = array[rows]
        zeros = np.zeros((more, *part.shape[1:]), part.dtype)
        return np.concatenate([part, zeros]) if more else part

    return filled(index), _tree.map(filled, examples)
