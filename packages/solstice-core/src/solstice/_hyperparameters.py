"""Hyper-parameters of a run as values of JSON, from a dict, a dataclass or a Namespace."""

import argparse
import dataclasses
import enum
import types
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from solstice import _tree
from solstice._arguments import check_alive, shown

_MOST = 256
"""The most numbers of an array: hyper-parameters go into tables and into each checkpoint."""

_REAL = (np.integer, np.floating)


def plain_hyperparameters(given: object) -> dict[str, Any] | None:
    """`plain_hyperparameters(Config(rate=0.1)) == {"rate": 0.1}`; None if none are given.

    Paths, enums, dtypes, functions and classes become text.

    Raises:
        TypeError: it is something else, or holds a value that JSON does not take.
        ValueError: it holds itself, an array of more than 256 numbers, or two values that have one
            name in `flat`.
    """
    if given is None:
        return None
    table = _table(given)
    if table is None:
        raise TypeError(
            f"hyperparameters must be a dict with text keys, a dataclass or an argparse.Namespace, "
            f'such as `hyperparameters={{"rate": 0.1}}`; it is {_shown(given)}'
        )
    try:
        found = _plain_table(table, "hyperparameters")
        flat(found)  # raises for two values of one name
        return found
    except RecursionError:
        raise ValueError("hyperparameters are nested too deeply, or hold themselves") from None


def flat(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """`flat({"optimizer": {"rate": 0.1}}) == {"optimizer.rate": 0.1}`, for tools without nesting.

    Lists and None become text.

    Raises:
        ValueError: two values get the same name.
    """
    found: dict[str, Any] = {}
    for name, value in hyperparameters.items():
        if isinstance(value, dict) and value:
            inner = flat(cast("dict[str, Any]", value))
            new = {f"{name}.{key}": x for key, x in inner.items()}
        else:
            is_plain = isinstance(value, bool | int | float | str)
            new = {name: value if is_plain else str(cast("object", value))}
        both = found.keys() & new.keys()
        if both:
            raise ValueError(f"hyperparameters has two values named {min(both)!r}: rename one")
        found |= {
            key: x if isinstance(x, bool | int | float | str) else str(x) for key, x in new.items()
        }
    return found


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences of two runs in words, such as "optimizer.rate was 0.1, and is 0.2"."""
    old, new = flat(was), flat(now)
    return [
        f"{name} was {old.get(name, 'not given')}, and is {new.get(name, 'not given')}"
        for name in {**old, **new}
        if repr(old.get(name, ...)) != repr(new.get(name, ...))  # NaN stays NaN
    ]


def _table(value: object) -> Mapping[Any, Any] | None:
    """The entries of a value that has some, else None."""
    if isinstance(value, Mapping):
        return cast("Mapping[Any, Any]", value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    is_namespace = isinstance(value, argparse.Namespace | types.SimpleNamespace)
    return vars(value) if is_namespace else None


def _plain_table(table: Mapping[Any, Any], where: str) -> dict[str, Any]:
    for key in table:
        if not isinstance(key, str):
            raise TypeError(f"{where} has the key {_shown(key)}, and its keys must be text")
    return {str(key): _plain(value, f"{where}[{key!r}]") for key, value in table.items()}


def _plain(value: Any, where: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if (table := _table(value)) is not None:
        return _plain_table(table, where)
    if isinstance(value, str):
        return value.name if isinstance(value, enum.Enum) else str(value)
    if _is_list(value):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if _tree.is_array(value) or isinstance(value, np.generic):
        return _plain_array(value, where)
    text = _text(value)
    if text is None:
        raise TypeError(
            f"{where} is {_shown(value)}, and hyper-parameters are None, numbers, text, lists and "
            f"dicts: give its name, or its settings as a dict"
        )
    return text


def _is_list(value: object) -> bool:
    """Whether it is a sequence of values, such as the lists of OmegaConf."""
    return isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview)


def _plain_array(value: Any, where: str) -> Any:
    check_alive(where, value)
    if not (value.dtype == bool or any(jnp.issubdtype(value.dtype, kind) for kind in _REAL)):
        raise TypeError(f"{where} is {_shown(value)}, and an array here has real numbers")
    if value.size > _MOST:
        raise ValueError(
            f"{where} is {shown(value)}, and hyper-parameters have at most {_MOST} numbers"
        )
    return _tree.to_numpy(value).tolist()


def _text(value: Any) -> str | None:
    """The text of a setting; None for other objects, whose text may have an address."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.name
    if _names_dtype(value):
        return np.dtype(value).name
    name = getattr(value, "__qualname__", None)
    if not callable(value) or not isinstance(name, str) or "<lambda>" in name:
        return None
    return f"{value.__module__}.{name}"


def _names_dtype(value: Any) -> bool:
    """Whether it is a dtype, or a class that stands for one, such as `jnp.bfloat16`."""
    if isinstance(value, type):
        given: Any = vars(value).get("dtype")
        return issubclass(value, np.generic) or isinstance(given, np.dtype)
    return isinstance(value, np.dtype)


def _shown(value: object) -> str:
    return f"{' '.join(shown(value).split())}, of type {type(value).__name__}"
