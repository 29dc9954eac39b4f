"""Sums of losses and gradients over the parts of a batch."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._batch import describe_batch
from solstice._errors import DataError
from solstice._metrics import Metrics, at_least_float32
from solstice._types import AnyArray, Batch

_Carry = TypeVar("_Carry")
_Outputs = TypeVar("_Outputs")


def over_parts(
    add: Callable[[_Carry, tuple[Array, Batch]], tuple[_Carry, Metrics]],
    start: _Carry,
    batch: Batch,
    parts: int,
) -> tuple[_Carry, Metrics]:
    """Applies `add` to each part of a batch; the last carry, and the merged outputs."""
    carry, outputs, last = each_part(add, start, batch, parts)
    merged = _tree.row(outputs, 0)
    # After the loop, because merged metrics may grow, and a carry cannot.
    for index in range(1, _cut(batch, parts)[0]):
        merged = merged.merge(_tree.row(outputs, index))
    return carry, merged if last is None else merged.merge(last)


def each_part(
    add: Callable[[_Carry, tuple[Array, Batch]], tuple[_Carry, _Outputs]],
    start: _Carry,
    batch: Batch,
    parts: int,
) -> tuple[_Carry, _Outputs, _Outputs | None]:
    """Applies `add` to each part of a batch.

    All parts have the same size except the last, which may be smaller and runs after the loop.

    Returns:
        The last carry; the outputs of the parts of the same size, stacked; and those of a smaller
        last part, or None.
    """
    full, size, rest = _cut(batch, parts)
    cut = full * size

    def stacked(leaf: AnyArray) -> AnyArray:
        return leaf[:cut].reshape(full, size, *leaf.shape[1:])

    carry, outputs = jax.lax.scan(add, start, (jnp.arange(full), _tree.map(stacked, batch)))
    if not rest:
        return carry, outputs, None
    carry, last = add(carry, (jnp.asarray(full), _tree.row(batch, slice(cut, None))))
    return carry, outputs, last


def _cut(batch: Batch, parts: int) -> tuple[int, int, int]:
    """The number of parts of the same size, this size, and the size of a smaller last part."""
    length = _length(batch)
    size = -(-length // parts)
    full, rest = divmod(length, size)
    return full, size, rest


def _length(batch: Batch) -> int:
    lengths = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in _tree.leaves(batch)}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            f"with micro_batches, all arrays of a batch must have the same number of examples on "
            f"axis 0; the batch is {describe_batch(batch)}"
        )
    return lengths.pop()


def weighted_sums(losses: Array, weights: AnyArray | None) -> tuple[Array, Array]:
    """The sum of the weighted losses of a batch, and that of their weights."""
    losses = _of_examples(losses)
    if weights is None:
        return jnp.sum(losses), jnp.asarray(losses.size, losses.dtype)
    weighted, shares = _weighted(losses, weights)
    return jnp.sum(weighted), jnp.sum(shares)


def weighted_rows(losses: Array, weights: AnyArray | None) -> tuple[Array, Array]:
    """`weighted_sums` of each example, both of shape [n]."""
    losses = _of_examples(losses)
    both = (losses, jnp.ones_like(losses)) if weights is None else _weighted(losses, weights)
    each, shares = (jnp.sum(part.reshape(len(part), -1), 1) for part in both)
    return each, shares


def _of_examples(losses: Array) -> Array:
    losses = at_least_float32(losses)
    if losses.ndim == 0:
        raise ValueError(
            "an objective must return the loss of each example, of shape [n], and the Learner "
            "takes the mean; it returned a scalar. Leave the mean out"
        )
    return losses


def _weighted(losses: Array, weights: AnyArray) -> tuple[Array, Array]:
    shares = jnp.broadcast_to(weights, losses.shape).astype(losses.dtype)
    # A masked loss may be NaN, and NaN * 0 is NaN.
    return jnp.where(shares != 0, losses * shares, 0), shares


def quotient(total: Array, weight: Array) -> Array:
    """The mean, or 0 without weight: a fully masked batch has a gradient of 0.

    The inner `where` keeps the gradient free of NaN, because that of 0 / 0 is NaN even where
    the outer one drops the value.
    """
    there = weight != 0
    return jnp.where(there, total / jnp.where(there, weight, 1), 0)


def added(sum_: Array, more: Array) -> Array:
    return sum_ + more.astype(sum_.dtype)


def wide_zeros(leaf: Array) -> Array:
    """Zeros to accumulate gradients in: float32 for narrower dtypes, since bfloat16 would round."""
    return _tree.wide(jnp.zeros_like(leaf))
