"""Batches some of whose entries do not count."""

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
    """`solstice.data.Masked((images, labels), mask)`: a batch, and which of its entries count.

    The ready-made Experiments take it wherever they take a batch. What does not count is in no
    loss, no gradient and no metric. It does go through the model: BatchNorm sees it, and features
    that are NaN spoil the gradient. Targets may be anything there.

    Args:
        batch: the batch as it would be without a mask.
        mask: true where an entry counts, boolean: of shape [n], an entry for each example; for
            language models also of shape [n, length], an entry for each token.
    """

    batch: Batch
    mask: Any


def pad_batch(batch: Batch, size: int) -> Masked:
    """`solstice.data.pad_batch(batch, 32)`: a smaller batch filled up to 32 examples.

    So that all batches are of one shape, and divide among devices. The padding repeats the batch's
    own examples, which are valid input whatever the model does with it, and is masked.

    ```python
    train_ds = lambda: (solstice.data.pad_batch(batch, 32) for batch in batches)
    ```

    Args:
        batch: an array or a pytree of arrays with the example on axis 0, or a `Masked` one.
        size: examples in the batch that comes back.

    Returns:
        The batch of NumPy arrays of `size` examples, with a mask that is true for the given ones.

    Raises:
        DataError: the batch has no examples or more than `size`, or its arrays are of different
            lengths.
    """
    size = whole("size", size, 1, "examples", error=DataError)
    if isinstance(batch, Masked):
        batch, mask = batch.batch, np.asarray(batch.mask)
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

    def filled(leaf: Any) -> Any:
        return np.asarray(leaf)[rows]

    return Masked(_tree.map(filled, batch), np.concatenate([counts, padding]))
