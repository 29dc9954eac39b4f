"""Masks and weights of examples, and counts, or sums of weights, of those in a set or bin."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from solstice import _tree
from solstice._arguments import real
from solstice._hints import mask_hint, weights_hint
from solstice._sums import at_least_float32


def as_mask(mask: ArrayLike | None, shape: tuple[int, ...], *, by_row: bool = False) -> Array:
    """The mask as a boolean array of this shape; all true for None.

    With `by_row`, a mask of shape [n] covers whole rows.

    Raises:
        ValueError: it has another shape, or numbers other than 0 and 1, such as weights. Traced
            numbers are refused too, since their values are unknown.
    """
    if mask is None:
        return jnp.ones(shape, bool)
    given = jnp.asarray(real("mask", mask))
    if by_row and given.shape == shape[:1]:
        given = _over_rows(given, shape)
    if given.shape != shape or not _is_mask(given):
        raise ValueError(
            f"the mask must have the shape {list(shape)}, booleans that are true where an entry "
            f"counts; it has {list(given.shape)} of {given.dtype}{mask_hint(mask)}"
        )
    return given.astype(bool)


def _is_mask(given: Array) -> bool:
    if given.dtype == bool or isinstance(given, Tracer):
        return given.dtype == bool
    return bool(np.isin(_tree.to_numpy(given), [0, 1]).all())


def as_weights(
    mask: ArrayLike | None,
    weights: ArrayLike | None,
    shape: tuple[int, ...],
    *,
    by_row: bool = False,
) -> tuple[Array, Array | None]:
    """The mask, booleans of this shape, and the weights; None if there are none.

    Masked entries have a weight of 0. Boolean weights are a mask. A negative weight becomes NaN, as
    in `Mean`, because a compiled step cannot raise. Entries of weight 0 stay in the mask, so that
    under `jax.vmap` over weights it is one mask for all; `weighing` leaves them out.

    Raises:
        ValueError: the mask or the weights have another shape.
    """
    counts = as_mask(mask, shape, by_row=by_row)
    if weights is None:
        return counts, None
    given = jnp.asarray(real("weights", weights))
    if given.dtype == bool:
        return counts & as_mask(given, shape, by_row=by_row), None
    if by_row and given.shape == shape[:1]:
        given = _over_rows(given, shape)
    if given.shape != shape:
        raise ValueError(
            f"the weights must have the shape {list(shape)}, real numbers of 0 or more; they have "
            f"{list(given.shape)} of {given.dtype}{weights_hint(weights, shape, by_row=by_row)}"
        )
    shares = jnp.where(counts, at_least_float32(given), 0)
    return counts, jnp.where(shares >= 0, shares, jnp.nan)


def weighing(counts: Array, weights: Array | None) -> Array:
    """The mask without the entries of weight 0."""
    return counts if weights is None else counts & (weights != 0)


def times(values: Array, weights: Array | None) -> Array:
    """Values times weights of the shape of their last axes, 0 where the weight is 0.

    Unchanged if there are no weights.
    """
    if weights is None:
        return values
    axes = [1] * (values.ndim - weights.ndim)
    factors = weights.reshape(*axes, *weights.shape).astype(values.dtype)
    return jnp.where(factors == 0, 0, values * factors)  # a value without weight may be NaN


def _over_rows(given: Array, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(given.reshape(-1, *[1] * (len(shape) - 1)), shape)


def count(where: Array, axis: int | None = None, weights: Array | None = None) -> Array:
    """The number of true entries, uint32, since a batch may have up to 2^32; or their weight."""
    if weights is None:
        return jnp.sum(where, axis=axis, dtype=jnp.uint32)
    if where.ndim == 1:
        return _weighed(weights, where)
    return jnp.sum(weights * where.astype(weights.dtype), axis=axis)


def count_examples(where: Array, weights: Array | None) -> Array:
    """The number of true entries of any weight but 0, uint32."""
    if weights is None or where.ndim > 1 or where.size >= 2**24:  # float32 is exact below
        return count(weighing(where, weights))
    return _weighed((weights != 0).astype(jnp.float32), where).astype(jnp.uint32)


def _weighed(weights: Array, columns: Array) -> Array:
    """The sum of weights times each column, by a product of matrices.

    It is fast under `jax.vmap` over weights. A NaN weight makes all sums NaN.
    """
    columns = columns.astype(weights.dtype)
    if _is_explicit(weights):  # such a product has no sharding there
        return jnp.sum(weights.reshape(-1, *[1] * (columns.ndim - 1)) * columns, axis=0)
    return jnp.dot(weights, columns, precision=jax.lax.Precision.HIGHEST)


_FEW = 128
"""Up to this many bins, comparing with each is faster than a scatter and works on any mesh."""


_MANY = 1024
"""Up to this many bins, weights are multiplied by a matrix of entries and bins."""


def tally(
    bins: Array, length: int, values: ArrayLike = True, weights: Array | None = None
) -> Array:
    """The sum of values in each bin, shape [length]: uint32, or the float dtype of the values.

    Entries of `bins` outside [0, length) are dropped. With weights, values are multiplied by them.
    """
    if weights is not None:
        return _weighted_tally(bins, length, weights * jnp.asarray(values, weights.dtype))
    each = jnp.broadcast_to(jnp.asarray(values), bins.shape)
    if not jnp.issubdtype(each.dtype, jnp.inexact):
        each = each.astype(jnp.uint32)
    if length <= _FEW or _is_explicit(bins):
        every = jnp.arange(length, dtype=bins.dtype)
        zero = jnp.zeros((), each.dtype)
        hits = jnp.where(bins[:, None] == every[None, :], each[:, None], zero)
        return jnp.sum(hits, axis=0, dtype=each.dtype)
    bins = jnp.where(bins < 0, length, bins)  # a negative index would count from the end
    return jnp.zeros(length, each.dtype).at[bins].add(each, mode="drop")


def tally_columns(bins: Array, length: int, values: Array, weights: Array | None) -> Array:
    """`tally` of each column of `bins`, for values of the same shape; shape [length, columns]."""
    if _is_explicit(bins):  # `jax.vmap` of JAX 0.6 takes the axis of the mesh for that of columns
        kind = jnp.uint32 if weights is None else weights.dtype
        each = values.astype(kind) if weights is None else weights * values.astype(kind)
        every = jnp.arange(length, dtype=bins.dtype)[None, :, None]
        hits = jnp.where(bins[:, None] == every, each[:, None], jnp.zeros((), kind))
        return jnp.sum(hits, axis=0, dtype=kind)

    def of_column(bins: Array, values: Array, weights: Array | None) -> Array:
        return tally(bins, length, values, weights)

    return jax.vmap(of_column, in_axes=1, out_axes=1)(bins, values, weights)


def _weighted_tally(bins: Array, length: int, weights: Array) -> Array:
    """The sum of weights in each bin. A scatter of floats would differ from run to run on a GPU."""
    if length <= _MANY or _is_explicit(weights):
        return _weighed(weights, _one_hot(bins, length))
    # The bins as a table of rows and columns, so that two small matrices replace a large one.
    columns = math.isqrt(length - 1) + 1
    rows = -(-length // columns)
    row = jnp.where((bins >= 0) & (bins < length), bins // columns, rows)
    one, other = _one_hot(row, rows), _one_hot(bins % columns, columns)
    table = jnp.dot(
        (weights[:, None] * one.astype(weights.dtype)).T,
        other.astype(weights.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
    return table.reshape(-1)[:length]


def _one_hot(bins: Array, length: int) -> Array:
    return bins[:, None] == jnp.arange(length, dtype=bins.dtype)[None, :]


def _is_explicit(array: Array) -> bool:
    """Whether the array is on a mesh with Explicit axes, for which JAX has no scatter."""
    mesh = getattr(getattr(jax.typeof(array), "sharding", None), "mesh", None)
    return any(kind == jax.sharding.AxisType.Explicit for kind in getattr(mesh, "axis_types", ()))
