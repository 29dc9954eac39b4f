"""`solstice.data`: batches of arrays in memory, and masked and weighted batches."""

from solstice.data._batches import Batches, BatchIterator, batches
from solstice.data._masked import Masked, pad_batch, weights_of
from solstice.data._per_process import PerProcess, per_process

__all__ = [
    "BatchIterator",
    "Batches",
    "Masked",
    "PerProcess",
    "batches",
    "pad_batch",
    "per_process",
    "weights_of",
]
