"""`solstice.data`: make data sets of what is in memory."""

from solstice._batches import Batches, batches

__all__ = ["Batches", "batches"]
