"""Advice for data sets of other libraries: the line that makes arrays of them."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from solstice import _tree
from solstice._batch import describe_batch
from solstice._errors import DataError

_TABLES = {
    "pandas": '{}.to_numpy("float32")',
    "polars": '{}.to_numpy().astype("float32")',
    "scipy": "{}.toarray()",
}
"""How a table or a sparse matrix of a library becomes an array."""

_COLUMN = "{}.to_numpy()"
"""How a column does; it may hold classes, which are not floating point."""


def check_arrays(data: Any, name: str) -> None:
    """Refuses tables, sparse matrices and lists of numbers.

    Raises:
        DataError: with the line that makes arrays of them.
    """
    parts = _parts(data)
    code = {key: _code(key, part) for key, part in parts.items()}
    wrong = [key for key in parts if code[key] != key]
    if wrong:
        inside = ", ".join(code.values())
        inside = f"({inside})" if len(parts) > 1 else inside
        raise DataError(
            f"{name} has {_kind(parts[wrong[0]])}, which is not an array. With "
            f"`{', '.join(parts)}` as its parts, write `{name}={inside}`"
        )


def examples_advice(data: Any, name: str) -> str | None:
    """The error about a list of single examples; None for other data.

    A pair of an array and a number may be a batch too, so this is for data that are refused anyway.
    """
    if not _is_of_examples(data):
        return None
    stacked = "tuple(np.stack(part) for part in zip(*{0}))"
    if isinstance(data[0], Mapping):
        stacked = "{{key: np.stack([one[key] for one in {0}]) for key in {0}[0]}}"
    return (
        f"{name} is a list of examples, such as {describe_batch(data[0])}, not of batches. Stack "
        f"them, and choose a batch size: `{name}={stacked.format(name)}, batch_size=32`"
    )


def _parts(data: Any) -> dict[str, Any]:
    """The parts of a pair or triple, by the names `x`, `y` and `w`; a table alone is `df`."""
    if isinstance(data, tuple) and len(cast("tuple[Any, ...]", data)) in (2, 3):
        return dict(zip("xyw", cast("tuple[Any, ...]", data), strict=False))
    return {"df": data} if _library(data) else {}


def _code(key: str, part: Any) -> str:
    """The code for a part, which is its key if it is an array already."""
    library = _library(part)
    if library:
        return (_COLUMN if len(part.shape) == 1 else _TABLES[library]).format(key)
    return f"np.asarray({key})" if _is_list_of_numbers(part) else key


def _library(part: Any) -> str:
    """The library of a table, a column or a sparse matrix; "" for everything else."""
    library = type(part).__module__.partition(".")[0]
    return library if library in _TABLES and hasattr(part, "shape") else ""


def _kind(part: Any) -> str:
    library = _library(part)
    return f"a {library}.{type(part).__name__}" if library else "a list"


def _is_list_of_numbers(part: Any) -> bool:
    """Whether it is a list of numbers, or of lists of numbers."""
    while isinstance(part, list) and part:
        part = cast("list[Any]", part)[0]
        if _is_number(part):
            return True
    return False


def _is_of_examples(data: Any) -> bool:
    """Whether it is a list of pairs, or of dicts of two, with a number as one part: a label."""
    first: Any = cast("list[Any]", data)[0] if isinstance(data, list) and data else None
    if not isinstance(first, tuple | Mapping):
        return False
    leaves = _tree.leaves(first)
    return len(leaves) == 2 and sum(map(_is_number, leaves)) == 1


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, bool | int | float | np.number) or getattr(leaf, "shape", None) == ()
