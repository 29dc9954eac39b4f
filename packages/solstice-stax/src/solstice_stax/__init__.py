"""Solstice adapters for Stax and for the optimizers of `jax.example_libraries`."""

from solstice_stax._model import StaxModel
from solstice_stax._optimizer import TripleOptimizer

__all__ = ["StaxModel", "TripleOptimizer"]
