"""Solstice adapter for Haiku: `solstice.compat.HaikuModel`."""

from solstice_haiku._model import HaikuModel

__all__ = ["HaikuModel"]
