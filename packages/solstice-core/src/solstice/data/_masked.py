"""Masked and weighted batches, and padding to a fixed size."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from solstice import _tree
from solstice._arguments import check_alive, whole
from solstice._batch import is_traced, num_rows
from solstice._errors import DataError
from solstice._shares import (
    are_weights,
    check_shares,
    check_weights,
    is_triple,
    of_triple,
    poisoned,
)
from solstice._types import AnyArray, Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Masked:
    """`solstice.data.Masked((images, labels), mask)`: a batch with a mask, or weights, of entries.

    The ready-made Experiments take it in place of any batch. Invalid entries are in no loss, no
    gradient and no metric. They do go through the model: BatchNorm sees them, and NaN features
    spoil the gradient. Their targets may have any value.

    With weights, the loss is the weighted mean, in training too, and an example of weight 3 counts
    as three examples in the metrics. `Masked((x, y), weights)` is the batch `(x, y, weights)`. For
    both a mask and weights, write `Masked((x, y, weights), mask)`.

    Args:
        batch: the batch without a mask.
        mask: booleans, true for valid entries, or floats of 0 or more, the weights: of shape [n],
            one per example; for language models also of shape [n, length], one per token.
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
        Weights of a `Masked` batch stay, and those of the padding are 0.

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
    padding = np.zeros((size - length, *counts.shape[1:]), counts.dtype)

    def filled(leaf: object) -> np.ndarray[Any, Any]:
        return _tree.to_numpy(leaf)[rows]

    return Masked(_tree.map(filled, batch), np.concatenate([counts, padding]))


def weights_of(batch: Batch) -> tuple[Batch, AnyArray | None]:
    """`(x, y), weights = solstice.data.weights_of(batch)`: a batch without its weights, and these.

    For the steps of your own Experiment. It takes `(x, y)`, `(x, y, weights)` and a `Masked` batch:

    ```python
    def eval_step(self, batch):
        (x, y), weights = solstice.data.weights_of(batch)
        return self, RegressionMetrics(self.model(x), y, weights=weights)
    ```

    Returns:
        The batch, and the argument `weights` of metrics, of `Mean` and of a Learner: floats, or the
        booleans of a mask; their product, if the batch has both; None, if it has neither.

    Raises:
        DataError: they are neither floats nor booleans, or have another length than the batch, or
            are negative, infinite or NaN. In a compiled step, negative weights become NaN.
    """
    bare, mask = (batch.batch, batch.mask) if isinstance(batch, Masked) else (batch, None)
    if isinstance(batch, Masked):
        check_shares(mask, num_rows(bare))
    if is_triple(bare):
        check_shares(bare[2], num_rows(bare), "batch[2]")
    bare, weights = of_triple(bare, mask)
    if are_weights(weights) and is_traced(weights):
        return bare, poisoned(weights)
    check_weights(weights)
    return bare, weights
