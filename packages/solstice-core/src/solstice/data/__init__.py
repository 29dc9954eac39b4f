"""`solstice.data`: batches of arrays in memory, and masked batches."""

from solstice.data._batches import Batches, BatchIterator, batches
from solstice.data._masked import Masked, pad_batch

__all__ = ["BatchIterator", "Batches", "Masked", "batches", "pad_batch"]
