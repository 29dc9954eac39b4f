"""Schemas of files: frozen dataclasses, checked when a file is read.

A correct checksum is not enough, because another tool or an attacker may have written the file.
"""

import dataclasses
import types
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

_T = TypeVar("_T")

_LARGEST = 2**63
"""Integers in a file are counts and sizes: 0 or more, and below this number."""


class SchemaError(ValueError):
    """An entry of a file does not fit its schema; the message names its path."""


def read(kind: type[_T], value: object, where: str) -> _T:
    """`read(Manifest, json.loads(text), "manifest.json")`: an object of a dataclass.

    Fields of type `Any` are not checked. Unknown entries are ignored, because a later version may
    write more.

    Args:
        kind: a dataclass of these types: bool, int (0 or more), float, str, None, list, dict with
            text keys, Literal, Any, unions, and dataclasses.
        value: the content of the file: dicts, lists and numbers.
        where: the name of the content, for messages.

    Raises:
        SchemaError: an entry is missing, or of another type.
    """
    return cast("_T", _read(kind, value, where))


def _read(kind: object, value: object, where: str) -> object:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_fields(cast("type[Any]", kind), value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_one_of(arguments, value, where)
    if origin is Literal:
        fits = isinstance(value, str) and value in arguments
        return _fitting(fits, f"one of {list(arguments)}", value, where)
    if origin is list:
        items: list[Any] = _checked(list, value, where)
        return [_read(arguments[0], x, f"{where}[{i}]") for i, x in enumerate(items)]
    if origin is dict:
        table: dict[Any, Any] = _checked(dict, value, where)
        return {key: _read(arguments[1], x, f"{where}[{key!r:.60}]") for key, x in table.items()}
    return _checked(kind, value, where)


def _read_fields(kind: type[_T], value: object, where: str) -> _T:
    table: dict[str, Any] = _checked(dict, value, where)
    found: dict[str, Any] = {}
    for name, (field_kind, is_required) in _fields(kind).items():
        if name in table:
            found[name] = _read(field_kind, table[name], f"{where}[{name!r}]")
        elif is_required:
            raise SchemaError(f"{where} has no {name!r}")
    return kind(**found)


def _read_one_of(kinds: tuple[Any, ...], value: object, where: str) -> object:
    errors: list[SchemaError] = []
    for kind in kinds:
        try:
            return _read(kind, value, where)
        except SchemaError as error:
            # Without its frames, which hold this list: all of it, up to the state of the run that
            # is resumed, would be in memory until a search for cycles.
            errors.append(error.with_traceback(None))
    raise errors[0]


@lru_cache
def _fields(kind: type[Any]) -> dict[str, tuple[Any, bool]]:
    """The type of each field by name, and whether the field is required."""
    hints = get_type_hints(kind)
    none = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is none and field.default_factory is none)
        for field in dataclasses.fields(kind)
    }


def _is_whole(value: object) -> bool:
    return type(value) is int and 0 <= value < _LARGEST  # a bool is an int too


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in cast("Any", value))


_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number, 0 or more", _is_whole),
    float: ("a number", lambda x: _is_whole(x) or isinstance(x, float | np.floating)),
    str: ("text", lambda value: isinstance(value, str)),
    list: ("a list", lambda value: isinstance(value, list)),
    dict: ("a table with names for keys", _is_table),
    type(None): ("nothing", lambda value: value is None),
}


def _checked(kind: object, value: object, where: str) -> Any:
    expected, fits = _KINDS[kind]
    return _fitting(fits(value), expected, value, where)


def _fitting(fits: bool, expected: str, value: object, where: str) -> Any:
    if not fits:
        raise SchemaError(f"{where} must be {expected}; it is {_shown(value)}")
    return value


def _shown(value: object) -> str:
    """A value as text for a message."""
    # No `repr` of a table, because an attacker may nest it deeply.
    is_plain = value is None or isinstance(value, bool | float | str)
    return f"{value!r:.60}" if is_plain else f"a {type(value).__name__}"
