"""Weights to convert: from a file of safetensors, a tree, or a model of torch or Keras."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from solstice._paths import check_file, check_regular, local_path

_LINES = {
    "torch": "safetensors.torch.save_file(torch.load(path, weights_only=True), "
    "'model.safetensors')",
    "keras": "solstice.convert(keras.saving.load_model(path), ...)",
}
"""By framework, the line that makes its own files readable."""

_FORMATS = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), "torch"),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), "keras"),
}


def tree_of(source: Any) -> Any:
    """What `source` holds, as a tree of arrays."""
    if isinstance(source, str | PathLike):
        return read_file(local_path(cast("Any", source), "source"))
    if callable(getattr(source, "state_dict", None)):  # of torch
        return source.state_dict()
    weights = getattr(source, "weights", None)
    if isinstance(weights, list) and all(hasattr(each, "path") for each in cast("Any", weights)):
        return {each.path: np.asarray(each) for each in cast("Any", weights)}  # of Keras
    return source


def read_file(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a file of safetensors.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another format.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    check_regular(path, "the file of weights")
    if path.suffix in _FORMATS:
        raise ValueError(
            f"{path} is a file of {_FORMATS[path.suffix]}, and Solstice reads safetensors. Write "
            f"`{_LINES[_FORMATS[path.suffix]]}`"
        )
    try:
        return _safetensors().load_file(path)
    except ImportError:
        raise
    except Exception as error:  # of safetensors, in its own class
        raise ValueError(f"{path} is not a whole file of safetensors: {error}") from error


def check_output(path: str | PathLike[str]) -> Path:
    """The path of the file to write, checked before anything is computed."""
    found = local_path(path, "to").absolute()
    if found.suffix != ".safetensors":
        raise ValueError(f"to must be a path that ends in .safetensors; it is {str(path)!r}")
    check_file(found, "solstice.convert(..., to=...)")
    _safetensors()
    return found


def write_file(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Writes a file of safetensors beside the path, and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    _safetensors().save_file(whole, new, metadata={"format": "pt"})
    new.replace(path)


def check_dtype(name: str, value: np.ndarray[Any, Any], like: Any) -> None:
    """Raises a TypeError for numbers that are no weights of this kind, such as quantised ones."""
    if not jnp.issubdtype(like.dtype, jnp.inexact):
        return
    kind = jnp.complexfloating if jnp.issubdtype(like.dtype, jnp.complexfloating) else jnp.floating
    if not jnp.issubdtype(value.dtype, kind):
        raise TypeError(
            f"{name} is {like.dtype}, and {value.dtype} in the source: convert it first"
        )


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy as library
    except ImportError as error:
        raise ImportError("weights are stored as safetensors: `pip install safetensors`") from error
    return library
