"""Batches: their array leaves, their examples, copies, and their text in messages."""

from typing import Any, TypeGuard, cast

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer

from solstice import _tree
from solstice._errors import DataError
from solstice._types import Batch

_MASKED = (
    "an array of shape {shape} in {name} is a NumPy masked array with {count} masked "
    "entries, and JAX has no masks: steps would use the numbers under it. Fill them in, "
    "`x.filled(0)`; to leave these examples out of the loss and the metrics too, put the batch "
    "into `solstice.data.Masked(batch, {rows})`"
)


def arrays_of(batch: Batch) -> Batch:
    """The batch as a step sees it: None in place of text and objects, which JAX has no type for."""

    def keep(leaf: Any) -> Any:
        return leaf if is_numeric(leaf) or isinstance(leaf, jax.ShapeDtypeStruct) else None

    return _tree.map(keep, batch)


def is_numeric(leaf: object) -> TypeGuard[np.ndarray | jax.Array]:
    """Whether a leaf is an array of a dtype that JAX has."""
    return isinstance(leaf, jax.Array) or (
        isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "OSUmM"
    )


def own(batch: Batch) -> Batch:
    """A copy of a batch that stays valid after the next one is read.

    A data set may reuse its memory for each batch. JAX arrays on the CPU are copied too, because
    `jax.device_put` may share NumPy memory.
    """
    return _tree.map(_own_leaf, batch)


def _own_leaf(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return np.array(cast("Any", leaf))
    return np.array(leaf) if isinstance(leaf, jax.Array) and _is_on_the_host(leaf) else leaf


def _is_on_the_host(array: jax.Array) -> bool:
    devices = array.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def from_device(leaves: list[Any]) -> list[Any]:
    """The leaves of a batch, with arrays on an accelerator as arrays of NumPy; one transfer."""
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and not _is_on_the_host(leaf):
            return jax.device_get(leaves)
    return leaves


def describe_batch(batch: Batch) -> str:
    """`(f32[32,8,8], i32[32])`: the structure of a batch, for messages."""
    return eqx.tree_pformat(batch, short_arrays=True)


def num_examples(batch: Batch) -> int:
    """The length of axis 0 of the first array of `batch` that has one; 1 if none has."""
    return next((leaf.shape[0] for leaf in _tree.leaves(batch) if np.ndim(leaf) > 0), 1)


def num_rows(batch: Batch) -> int:
    """The number of examples: the length of the first array that has an axis.

    Raises:
        DataError: there are no examples.
    """
    size = next((np.shape(leaf)[0] for leaf in _tree.leaves(batch) if np.ndim(leaf)), 0)
    if size == 0:
        raise DataError(
            f"a batch must have one example or more on axis 0; there is none in "
            f"{describe_batch(batch)}. Leave empty batches out"
        )
    return size


def is_traced(tree: Batch) -> bool:
    """Whether a tree has tracers in place of values, as during compilation."""
    return any(isinstance(leaf, Tracer) for leaf in _tree.leaves(tree))


def is_sequence(batch: Batch) -> TypeGuard[tuple[Batch, ...] | list[Batch]]:
    """Whether a batch is a tuple or list of parts."""
    return isinstance(batch, tuple | list)


def unmasked(array: Any, name: str) -> np.ndarray[Any, Any]:
    """The numbers of a NumPy masked array.

    Raises:
        DataError: it has masked entries.
    """
    count: int = cast("Any", np.ma).count_masked(array)
    if count:
        others = tuple(range(1, array.ndim))  # all axes but that of the examples
        rows = f"~x.mask.any(axis={others})" if others else "~x.mask"
        shape = list(array.shape)
        raise DataError(_MASKED.format(name=name, shape=shape, count=count, rows=rows))
    return array.data
