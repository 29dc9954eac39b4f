"""Refusal of several data sets in one argument, with the place for the others."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from solstice import _tree
from solstice._errors import DataError
from solstice._sources._kinds import is_array, is_tree_of_arrays
from solstice._sources._positions import is_seekable
from solstice.data import Masked

_PARTS: Any = (tuple, list, Mapping, Masked, str, bytes)
"""Types of batches and of their parts."""


def check_single(data: object, name: str, batch_size: int | None, like: object = None) -> None:
    """Refuses a dict, a list or a tuple of data sets.

    Args:
        data: the user's data set.
        name: its argument, such as "val_ds", for the message.
        batch_size: the user's `batch_size`.
        like: the training set, in `fit`. If it is arrays, a part of `data` with the same structure
            is a data set too.

    Raises:
        DataError: there are several data sets.
    """
    keys = _keys(data, like, are_batches=batch_size is None)
    if keys:
        one, other = (f"{name}[{key!r}]" for key in (keys[0], keys[-1]))
        kind = "dict" if isinstance(data, Mapping) else type(data).__name__
        raise DataError(
            f"{name} is a {kind} of {len(keys)} data sets, and must be one data set: write "
            f"`{name}={one}`. {_advice(name, one, other, batch_size, in_fit=like is not None)}"
        )


def _advice(name: str, one: str, other: str, batch_size: int | None, *, in_fit: bool) -> str:
    size = "" if batch_size is None else f", batch_size={batch_size}"
    if name == "val_ds" and in_fit:
        return (
            f"Evaluate on several sets in a callback, whose `on_epoch_end(self, record)` has "
            f"`self.trainer.validate(record.experiment, {other}{size})`: it is `AlsoOn` in "
            f"docs/howto/callbacks.md"
        )
    if name in ("val_ds", "test_ds"):
        method = "validate" if name == "val_ds" else "test"
        return f"Evaluate each separately: `trainer.{method}(exp, {one}{size})`"
    return "To read one after the other, pass a function that yields the batches of all"


def _keys(data: Any, like: Any, *, are_batches: bool) -> list[Any]:
    """The keys of the data sets in a container; [] if it is a single data set."""
    if isinstance(data, Mapping):
        children = dict(cast("Mapping[Any, Any]", data))
    elif isinstance(data, tuple | list):
        children = dict(enumerate(cast("list[Any]", data)))
    else:
        return []
    every = children.values()
    are_lists = are_batches and isinstance(data, Mapping) and all(map(_is_list_of_batches, every))
    if are_lists or all(_is_data_set(child) for child in every) or _are_like(data, every, like):
        return [*children]
    return []


def _is_data_set(child: object) -> bool:
    """Whether it is an iterable of batches or a function that makes one, not a part of a batch."""
    has_type = hasattr(child, "shape") and hasattr(child, "dtype")  # such as a sparse matrix
    if isinstance(child, _PARTS) or hasattr(child, "__array__") or has_type:
        return False
    return isinstance(child, Iterable) or callable(child) or is_seekable(child)


def _is_list_of_batches(child: object) -> bool:
    """Whether it is a list of tuples or dicts; a feature is a list of arrays, numbers or text."""
    if not isinstance(child, list) or not child:
        return False
    return all(isinstance(batch, tuple | Mapping) for batch in cast("list[Any]", child))


def _are_like(data: Any, every: Iterable[Any], like: object) -> bool:
    """Whether each part, but not the whole, has the structure of `like` or is a list of these."""
    if isinstance(data, list) or is_array(like) or not is_tree_of_arrays(like):
        return False
    one = _tree.structure(like)
    parts = [part for child in every for part in _parts(child)]
    is_whole = not parts or _tree.structure(data) == one
    return not is_whole and all(_tree.structure(part) == one for part in parts)


def _parts(child: object) -> list[Any]:
    return cast("list[Any]", child) if isinstance(child, list) else [child]
