"""Signatures: checks that a function of the user takes the arguments it will be called with."""

import inspect
from typing import Any, TypeVar, cast

from solstice._arguments import function_or_none

_T = TypeVar("_T")


def called_with(name: str, value: _T, such_as: str, *arguments: str) -> _T:
    """`called_with("loss", loss, "loss=optax.huber_loss", "outputs", "targets")`: the function.

    Raises:
        TypeError: it is not a function or None, or does not take these positional arguments.
    """
    taken = _signature(function_or_none(name, value, such_as))
    if taken is None or _binds(taken, len(arguments)):
        return value
    given, who = ", ".join(arguments), str(getattr(value, "__name__", ""))
    who = who if who.isidentifier() else ""  # a lambda has another name
    raise TypeError(
        f"{name} is called with ({given}); {who or 'the given one'} takes {taken!s:.100}. Write "
        f"`{name}=lambda {given}: {f'{who}(...)' if who else '...'}`"
    )


def _signature(value: object) -> inspect.Signature | None:
    try:
        return None if value is None else inspect.signature(cast("Any", value))
    except (TypeError, ValueError):  # a builtin does not always show its signature
        return None


def _binds(taken: inspect.Signature, count: int) -> bool:
    try:
        taken.bind(*range(count))
    except TypeError:
        return False
    return True
