"""Masked batches: batches with a mask of valid entries, and padding to a fixed size."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from solstice import _tree
from solstice._arguments import check_alive, whole
from solstice._errors import DataError
from solstice._types import Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Masked:
    """`solstice.data.Masked((images, labels), mask)`: a batch with a mask of valid entries.

    The ready-made Experiments take it in place of any batch. Invalid entries are in no loss, no
    gradient and no metric. They do go through the model: BatchNorm sees them, and NaN features
    spoil the gradient. Their targets may have any value.

    Args:
        batch: the batch without a mask.
        mask: booleans, true for valid entries: of shape [n], one per example; for language models
            also of shape [n, length], one per token.
    """

    batch: Batch
    mask: Any


def pad_batch(batch: Batch, size: int) -> Masked:
    """`solstice.data.pad_batch(batch, 32)`: pad a smaller batch to 32 examples.

    Use it to give all batches one shape, which also divides evenly among devices. The padding is
    masked. It repeats examples of the batch, because these are valid input for any model.

    ```python
    train_ds = lambda: (solstice.data.pad_batch(batch, 32) for batch in batches)
    ```

    Args:
        batch: an array or a pytree of arrays with the examples along axis 0, or a `Masked` batch.
        size: examples in the returned batch.

    Returns:
        A batch of NumPy arrays with `size` examples, and a mask that is true for the given ones.

    Raises:
        DataError: the batch has no examples or more than `size`, or its arrays have different
            lengths.
    """
    size = whole("size", size, 1, "examples", error=DataError)
    if isinstance(batch, Masked):
        batch, mask = batch.batch, _tree.to_numpy(batch.mask)
    else:
        mask = None
    for leaf in _tree.leaves((batch, mask)):
        check_alive("in the batch", leaf)
    shapes = [np.shape(leaf) for leaf in _tree.leaves((batch, mask))]
    lengths = sorted({shape[0] for shape in shapes if shape})
    if len(lengths) != 1 or not 1 <= lengths[0] <= size or () in shapes:
        number = " and a number without axes" if () in shapes else ""
        raise DataError(
            f"pad_batch fills a batch of 1 to {size} examples up to {size}; the lengths of this "
            f"one's arrays are {lengths}{number}"
        )
    length = lengths[0]
    rows = np.arange(size) % length
    counts = np.ones(length, bool) if mask is None else mask
    padding = np.zeros((size - length, *counts.shape[1:]), bool)

    def filled(leaf: object) -> np.ndarray[Any, Any]:
        return _tree.to_numpy(leaf)[rows]

    return Masked(_tree.map(filled, batch), np.concatenate([counts, padding]))
