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


def over_parts(
    add: Callable[[_Carry, tuple[Array, Batch]], tuple[_Carry, Metrics]],
    start: _Carry,
    batch: Batch,
    parts: int,
) -> tuple[_Carry, Metrics]:
    """Applies `add` to each part of a batch; the last carry, and the merged outputs.

    All parts have the same size except the last, which may be smaller and runs after the loop.
    """
    length = _length(batch)
    size = -(-length // parts)
    full, rest = divmod(length, size)
    cut = full * size

    def stacked(leaf: AnyArray) -> AnyArray:
        return leaf[:cut].reshape(full, size, *leaf.shape[1:])

    carry, outputs = jax.lax.scan(add, start, (jnp.arange(full), _tree.map(stacked, batch)))
    merged = _tree.row(outputs, 0)
    # After the loop, because merged metrics may grow, and a carry cannot.
    for index in range(1, full):
        merged = merged.merge(_tree.row(outputs, index))
    if rest:
        carry, outputs = add(carry, (jnp.asarray(full), _tree.row(batch, slice(cut, None))))
        merged = merged.merge(outputs)
    return carry, merged


def _length(batch: Batch) -> int:
    lengths = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in _tree.leaves(batch)}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            f"with micro_batches, all arrays of a batch must have the same number of examples on "
            f"axis 0; the batch is {describe_batch(batch)}"
        )
    return lengths.pop()


def weighted_sums(losses: Array, weights: AnyArray | None) -> tuple[Array, Array]:
    losses = at_least_float32(losses)
    if losses.ndim == 0:
        raise ValueError(
            "an objective must return the loss of each example, of shape [n], and the Learner "
            "takes the mean; it returned a scalar. Leave the mean out"
        )
    if weights is None:
        return jnp.sum(losses), jnp.asarray(losses.size, losses.dtype)
    shares = jnp.broadcast_to(weights, losses.shape).astype(losses.dtype)
    # A masked loss may be NaN, and NaN * 0 is NaN.
    return jnp.sum(jnp.where(shares != 0, losses * shares, 0)), jnp.sum(shares)


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
