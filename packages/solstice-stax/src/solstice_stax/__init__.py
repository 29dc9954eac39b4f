"""The Solstice adapter for Stax: `solstice.compat.StaxModel`."""

from solstice_stax._model import StaxModel

__all__ = ["StaxModel"]
