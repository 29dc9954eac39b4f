"""Checks of the batches of ready-made Experiments: pairs, masks, lengths and features."""

from collections.abc import Mapping
from typing import cast

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from solstice import _tree
from solstice._batch import describe_batch, is_sequence, num_rows
from solstice._errors import DataError
from solstice._hints import shares_hint
from solstice._shares import check_shares, is_triple
from solstice._types import AnyArray, Batch, Inputs, ModelOutputs, Targets
from solstice.data import Masked


def features_of(batch: Batch) -> Inputs:
    """The features of a batch: the batch itself, or its first entry if it is a tuple or list."""
    return batch[0] if is_sequence(batch) else batch


def unmasked(batch: Batch) -> tuple[Batch, AnyArray | None]:
    """The batch inside a `Masked` and its mask or weights; any other batch and None.

    Raises:
        DataError: they are neither booleans nor floats, or have another length than the batch.
    """
    if not isinstance(batch, Masked):
        return batch, None
    check_shares(batch.mask, num_rows(batch.batch))
    return batch.batch, batch.mask


def parts_of(batch: Batch) -> tuple[Batch, AnyArray | None]:
    """As `unmasked`, without the checks, for stacked batches too."""
    return (batch.batch, batch.mask) if isinstance(batch, Masked) else (batch, None)


def pair_of(batch: Batch) -> tuple[Inputs, Targets]:
    """The features and labels of a batch.

    Raises:
        DataError: the batch is not a pair.
    """
    parts = batch if is_sequence(batch) else ()
    holds_masked = any(isinstance(part, Masked) for part in parts)
    # A Masked in the pair would mask the features or the targets alone.
    if len(parts) == 2 and not holds_masked:
        return parts[0], parts[1]
    hint = ""
    if is_triple(batch):
        hint = ". Take weights apart by `(x, y), weights = solstice.data.weights_of(batch)`"
    elif isinstance(batch, Mapping):
        names = [*map(repr, cast("Mapping[str, Batch]", batch)), "'label'", "'label'"][:2]
        hint = f". Map each batch to a pair: `(batch[{names[0]}], batch[{names[1]}])`"
    elif hasattr(batch, "shape"):
        hint = ". Give both in one argument: `(x, y)`"
    elif isinstance(batch, Masked) or holds_masked:
        hint = ". A mask goes around all of it, once: `Masked((features, labels), mask)`"
    raise DataError(
        f"a batch must be a pair (features, labels); it is {describe_batch(batch)}{hint}"
    )


def counted(targets: AnyArray, mask: AnyArray | None) -> np.ndarray:
    """`y = experiments.counted(batch[1], mask)`: the targets that count, for `Task.check_values`.

    Args:
        targets: an array of shape [n, ...].
        mask: booleans of the first axes of the targets; None if all count.

    Returns:
        A NumPy array: the targets, or with a mask, those under it, flat.
    """
    targets = _tree.to_numpy(targets)
    if mask is None:
        return targets
    return targets[np.broadcast_to(spread(_tree.to_numpy(mask), targets), targets.shape)]


def check_lengths(x: Inputs, targets: Targets) -> None:
    """Raises a DataError if targets differ from the inputs in length."""
    for y in _arrays(targets):
        length = shape_of(y)[:1]
        # The shape of an array first: to read a tree costs more, in every batch.
        if length and shape_of(x)[:1] != length and num_rows(x) != length[0]:
            raise DataError(
                f"features and targets must have the same number of examples on axis 0; there are "
                f"{num_rows(x)} in the features, {describe_batch(x)}, and {length[0]} in the "
                f"targets, {describe_batch(y)}"
            )


def check_mask(mask: AnyArray | None, targets: Targets, name: str = "targets") -> None:
    """Raises a DataError if the mask, or weights, have other axes than the targets."""
    if mask is None:
        return
    for y in _arrays(targets):
        if mask.shape != shape_of(y)[: mask.ndim]:
            what = "the mask" if mask.dtype == bool else "the weights (`mask`)"
            raise DataError(
                f"{what} of {name} of shape {list(y.shape)} must be of that shape, or "
                f"[{y.shape[0]}]; it is {describe_batch(mask)}{shares_hint(mask)}"
            )


def check_floating(x: Inputs) -> None:
    """Raises a DataError unless the features are a floating-point array of shape [n, ...]."""
    if not is_of(x, jnp.floating) or x.ndim < 2:
        hint = ". Convert pixels with `(x / 255).astype('float32')`"
        if getattr(x, "ndim", 0) == 1:
            hint = ". Write `x[:, None]` for one number per example"
        raise DataError(
            f"expected features of floating point, of shape [n, ...]; they are "
            f"{describe_batch(x)}{hint}"
        )


def check_no_nan(x: np.ndarray) -> None:
    """Raises a DataError if the features contain NaN."""
    bad = count_nan(x)
    if bad:
        raise DataError(f"{bad} of {x.size} features are NaN: leave those examples out")


def count_nan(x: np.ndarray) -> int:
    """The number of NaN in an array of floats; fast if there are none."""
    # A minimum is NaN if anything is, and needs no memory.
    return int(np.isnan(x).sum()) if x.size and np.isnan(x.min()) else 0


def shape_of(outputs: ModelOutputs) -> tuple[int, ...]:
    """The shape of an array; () for any other object, such as a tuple of arrays."""
    return getattr(outputs, "shape", ())


def of_shape(outputs: ModelOutputs, shape: tuple[int, ...], must: str, or_else: str = "") -> Array:
    """The outputs of a model, an array of the expected shape.

    Raises:
        DataError: they are something else.
    """
    if shape_of(outputs) != shape:
        raise DataError(
            f"{must}; it gave {describe_batch(outputs)}. Change its last layer{or_else}"
        )
    return outputs


def without_last_axis(outputs: ModelOutputs, size: int) -> ModelOutputs:
    """Outputs of shape [n, 1] as [n]; others unchanged."""
    return outputs[:, 0] if shape_of(outputs) == (size, 1) else outputs


def is_of(array: object, *kinds: DTypeLike) -> bool:
    """Whether it is an array of one of these kinds of numbers, such as `jnp.integer`."""
    dtype = getattr(array, "dtype", object)
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def spread(weights: AnyArray, like: AnyArray) -> AnyArray:
    """Weights with trailing axes of length 1, so that they broadcast against `like`."""
    return weights.reshape(*weights.shape, *[1] * (like.ndim - weights.ndim))


def _arrays(targets: Targets) -> list[Targets]:
    return [targets] if hasattr(targets, "shape") else _tree.leaves(targets)
