"""Solstice adapters for Flax: `solstice.compat.FlaxModel` and `solstice.compat.NNXModel`."""

from solstice_flax._linen import FlaxModel
from solstice_flax._nnx import NNXModel

__all__ = ["FlaxModel", "NNXModel"]
