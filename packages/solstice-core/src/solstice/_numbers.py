"""Arrays of plain numbers for files: allowed kinds, names of dtypes, byte order."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

_CLASSES = (np.ndarray, np.memmap)
"""Allowed classes. Others mean more than their numbers: a mask, a unit, another product."""


KINDS = {
    "bool": jnp.bool_,
    "int": jnp.integer,
    "float": jnp.floating,
    "complex": jnp.complexfloating,
}


def kind_of(dtype: np.dtype[Any]) -> str:
    """The kind of the numbers of a dtype: "bool", "int", "float", "complex"; "" for others."""
    found = (word for word, kind in KINDS.items() if jnp.issubdtype(dtype, kind))
    # NumPy says that durations ("m") are integers.
    return "" if getattr(dtype, "kind", "") == "m" else next(found, "")


def why_not_plain(array: np.ndarray[Any, Any] | np.generic) -> str | None:
    """Why a NumPy array or scalar is not plain numbers, and the line to write; None if it is."""
    kind = type(array)
    if issubclass(kind, np.ma.MaskedArray):
        return "a masked array: keep `x.data` and `np.ma.getmaskarray(x)`"
    dtype = array.dtype
    if dtype.kind in "mM":
        return f"an array of {dtype}: make it numbers, `x.astype('int64')`"
    if dtype.kind in "OUS":
        return f"an array of {dtype}: make it a list, `x.tolist()`"
    if dtype.names is not None:
        return f"an array of {dtype}: make it an array for each field, `x[{dtype.names[0]!r}]`"
    if dtype.kind == "V" and dtype.isbuiltin != 2:  # 2: of another library, such as ml_dtypes
        return f"an array of {dtype}: make it numbers, `x.view('uint8')`"
    if issubclass(kind, np.ndarray) and kind not in _CLASSES:
        return f"a {kind.__name__}: make it an array of numbers, `np.array(x)`"
    return None


def to_little_endian(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same numbers in little-endian order, the one byte order of files."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def name_of(dtype: np.dtype[Any]) -> str:
    """The name of a dtype: "float32", or ">float32" if it is big-endian."""
    is_big = dtype != dtype.newbyteorder("<")  # a dtype's own name has no byte order
    return f">{dtype.name}" if is_big else dtype.name


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype with this name: the inverse of `name_of`."""
    bare = name.removeprefix(">")
    dtype = np.dtype(getattr(ml_dtypes, bare, bare))
    return dtype.newbyteorder(">") if bare != name else dtype.newbyteorder("<")
