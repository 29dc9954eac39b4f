"""Kinds of data sets: distinguishes arrays from batches, and refuses other objects."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from solstice import _tree
from solstice._batch import describe_batch
from solstice._errors import DataError
from solstice._sources._positions import is_seekable
from solstice.data import Masked


def is_examples(data: object) -> bool:
    """Whether `data` is arrays of examples: an array, a dict, or a tuple with an array in it.

    A list is a list of batches, and a tuple of tuples or dicts may be one too.
    """
    if isinstance(data, tuple):
        return any(is_array(child) for child in cast("tuple[Any, ...]", data))
    if isinstance(data, Masked):
        return True
    return isinstance(data, Mapping) or is_array(data)


def is_tree_of_arrays(data: Any) -> bool:
    if not (isinstance(data, tuple | list | Mapping | Masked) or is_array(data)):
        return False
    leaves = _tree.leaves(data)
    return bool(leaves) and all(is_array(leaf) for leaf in leaves)


def is_array(data: Any) -> bool:
    """Whether `data` is a NumPy or JAX array or a tensor, with at least one axis."""
    attributes = ("shape", "dtype", "__array__")
    return all(hasattr(data, name) for name in attributes) and len(data.shape) > 0


def check_kind(data: object, name: str) -> None:
    is_text = isinstance(data, str | bytes)
    if is_text or (not isinstance(data, Iterable) and not callable(data) and not is_seekable(data)):
        raise DataError(
            f"{name} must be an iterable of batches (a list, a tf.data.Dataset, a DataLoader ...), "
            f"a function that makes one, or arrays with a batch_size; it is {describe(data)}"
        )


def describe(data: Any) -> str:
    if is_tree_of_arrays(data):
        return describe_batch(data)
    return f"a {type(data).__module__}.{type(data).__qualname__}".replace("builtins.", "")
