"""`replace`: a copy of a module with some fields changed."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

import equinox as eqx

from solstice import _tree
from solstice._arguments import check_alive, instance, is_deleted

_M = TypeVar("_M", bound=eqx.Module)


def replace(module: _M, /, **changes: Any) -> _M:
    """`solstice.replace(exp, params=params, step=step)`: a copy of `module` with fields changed.

    It works where `dataclasses.replace` does not: on modules with a custom `__init__`, on
    fields with `init=False`, on static fields, and under `jax.jit`. As at creation, field
    converters are applied to the new values, and `__check_init__` runs on the copy.

    Args:
        module: an Experiment, a Metrics or any `equinox.Module`.
        **changes: the new values, by field name.

    Returns:
        A new module of the same class. `module` is not changed.

    Raises:
        TypeError: `module` is not a module, it has no field of that name, or the new value of a
            static field is an array.
        ValueError: a field that stays holds a deleted array, as of an Experiment that
            `fit(..., donate=True)` gave up.
    """
    instance("module", module, eqx.Module, "an Experiment, Metrics or another equinox.Module")
    fields = {field.name: field for field in dataclasses.fields(module)}
    for name, value in changes.items():
        if name not in fields:
            raise TypeError(_unknown_field(type(module).__name__, name, list(fields)))
        if fields[name].metadata.get("static", False) and eqx.is_array(value):
            raise TypeError(
                f"field {name!r} of {type(module).__name__} is static and cannot hold an array; "
                f"declare it without `static=True`, or give it a Python value"
            )
    _check_alive(module, [name for name in fields if name not in changes])
    new: _M = object.__new__(type(module))
    for name, field in fields.items():
        if name in changes:
            converter = field.metadata.get("converter", _unchanged)
            object.__setattr__(new, name, converter(changes[name]))
        elif hasattr(module, name):
            object.__setattr__(new, name, getattr(module, name))
    for cls in type(module).__mro__:
        check = cls.__dict__.get("__check_init__")  # of each class, as in Equinox
        if check is not None:
            check(new)
    return new


def _check_alive(module: eqx.Module, names: Iterable[str]) -> None:
    """Raises a ValueError if one of these fields holds a deleted array, of a donated Experiment."""
    for name in names:
        for leaf in _tree.leaves(getattr(module, name, None)):
            if is_deleted(leaf):
                check_alive(f"in `{name}` of the {type(module).__name__}", leaf)


def _unchanged(value: Any) -> Any:
    return value


def _unknown_field(owner: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{owner} has no field {name!r}.{hint} Its fields are: {', '.join(known) or 'none'}"
