"""Layouts: how each framework stores the weights of common layers, and conversion between them."""

from solstice.layouts._convert import convert
from solstice.layouts._known import AXES, EQUINOX, FLAX, HAIKU, KERAS, STAX, TORCH, Layout
from solstice.layouts._registry import layout_names
from solstice.layouts._weights import Weights, read_weights, write_weights

__all__ = [
    "AXES",
    "EQUINOX",
    "FLAX",
    "HAIKU",
    "KERAS",
    "STAX",
    "TORCH",
    "Layout",
    "Weights",
    "convert",
    "layout_names",
    "read_weights",
    "write_weights",
]
