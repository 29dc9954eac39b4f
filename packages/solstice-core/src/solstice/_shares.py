"""The mask or the weights of a batch: where they are, their product, and their checks."""

from typing import Any, TypeGuard

import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._batch import describe_batch, is_sequence
from solstice._errors import DataError
from solstice._hints import shares_hint
from solstice._sums import at_least_float32
from solstice._types import AnyArray, Batch


def is_triple(batch: Batch) -> TypeGuard[tuple[Batch, ...] | list[Batch]]:
    """Whether a batch has three parts, `(x, y, weights)`."""
    return is_sequence(batch) and len(batch) == 3


def of_triple(batch: Batch, mask: AnyArray | None) -> tuple[Batch, AnyArray | None]:
    """The batch without a third part, and the product of this part and the mask."""
    if not is_triple(batch):
        return batch, mask
    return batch[:2], batch[2] if mask is None else product(batch[2], mask)


def product(one: AnyArray, other: AnyArray) -> AnyArray:
    """Weights times weights or a mask; 0 where either is 0, whatever the other."""
    one, other = _widened(one, other), _widened(other, one)
    both = counting(one) & counting(other)
    kinds = [x.dtype for x in (one, other) if x.dtype != bool]
    if not kinds:
        return both
    xp: Any = np if isinstance(both, np.ndarray) else jnp
    return xp.where(both, one.astype(kinds[0]) * other.astype(kinds[0]), xp.zeros((), kinds[0]))


def _widened(one: AnyArray, other: AnyArray) -> AnyArray:
    return one.reshape(*one.shape, *[1] * max(other.ndim - one.ndim, 0))


def are_weights(shares: AnyArray | None) -> TypeGuard[AnyArray]:
    """Whether they are weights, in floats, and not a mask."""
    return shares is not None and jnp.issubdtype(shares.dtype, jnp.floating)


def counting(shares: AnyArray) -> AnyArray:
    """Where weights are not 0; a mask unchanged."""
    return shares if shares.dtype == bool else shares != 0


def poisoned(weights: AnyArray) -> Array:
    """Weights in float32 or wider, NaN for negative ones, since a compiled step cannot raise."""
    wide = at_least_float32(weights)
    return jnp.where(wide >= 0, wide, jnp.nan)


def check_shares(given: Any, size: int, name: str = "mask") -> None:
    """Raises a DataError unless it is a mask or weights of `size` examples.

    Args:
        given: the mask of a `Masked`, or a part of a batch.
        size: the number of examples.
        name: its name in code, "mask" or "batch[2]".
    """
    what = "the mask of a batch" if name == "mask" else "the third part of a batch"
    dtype = getattr(given, "dtype", object)
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.floating)) or not given.ndim:
        raise DataError(
            f"{what} must be an array of booleans, or of weights in floats, one for each of its "
            f"{size} examples; it is {describe_batch(given)}{shares_hint(given, name)}"
        )
    if given.shape[0] != size:
        raise DataError(
            f"{what} must have one entry for each of its {size} examples; it is "
            f"{describe_batch(given)}"
        )


def check_weights(weights: AnyArray | None) -> None:
    """Raises a DataError if weights are negative, infinite or NaN."""
    if not are_weights(weights):
        return
    array = _tree.to_numpy(weights)
    if not array.size or (array.min() >= 0 and array.max() < np.inf):
        return
    bad = array[~((array >= 0) & (array < np.inf))]
    raise DataError(
        f"{bad.size} of {array.size} weights are not finite numbers of 0 or more, such as "
        f"{bad[0]}. To leave these examples out, give them the weight 0: "
        f"`np.where((weights >= 0) & (weights < np.inf), weights, 0)`"
    )
