"""The Solstice adapter for toynet: `solstice.compat.ToynetModel`."""

from solstice_toynet._model import ToynetModel

__all__ = ["ToynetModel"]
