"""Signatures: checks that a function of the user takes the arguments it will be called with."""

import inspect
from typing import Any, TypeVar, cast

from solstice._arguments import function_or_none

_T = TypeVar("_T")


def called_with(
    name: str, value: _T, such_as: str, *arguments: str, option: str | None = None
) -> _T:
    """`called_with("loss", loss, "loss=optax.huber_loss", "outputs", "targets")`: the function.

    With `option`, the function may have a parameter of this name too.

    Raises:
        TypeError: it is not a function or None, or does not take these positional arguments.
    """
    taken = _signature(function_or_none(name, value, such_as))
    if taken is None or _binds(taken, len(arguments)):
        return value
    if option is not None and _binds(taken, len(arguments), option):
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


def accepts(function: object, name: str) -> bool:
    """Whether it can be called with this keyword; True if its signature is not known."""
    taken = _signature(function)
    if taken is None:
        return True
    kinds = {parameter.kind for parameter in taken.parameters.values()}
    return _parameter(taken, name) is not None or inspect.Parameter.VAR_KEYWORD in kinds


def requires(function: object, name: str) -> bool:
    """Whether it has a parameter of this name without a default."""
    taken = _signature(function)
    found = None if taken is None else _parameter(taken, name)
    return found is not None and found.default is inspect.Parameter.empty


def _parameter(taken: inspect.Signature, name: str) -> inspect.Parameter | None:
    found = taken.parameters.get(name)
    by_keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return found if found is not None and found.kind in by_keyword else None


def _binds(taken: inspect.Signature, count: int, *names: str) -> bool:
    try:
        taken.bind(*range(count), **dict.fromkeys(names))
    except TypeError:
        return False
    return True
