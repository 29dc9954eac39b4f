"""`solstice.data`: make data sets of what is in memory, and say which examples count."""

from solstice.data._batches import Batches, BatchIterator, batches
from solstice.data._masked import Masked, pad_batch

__all__ = ["BatchIterator", "Batches", "Masked", "batches", "pad_batch"]
