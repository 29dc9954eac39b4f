"""Checks of arguments: an error has the name, the expected value and the given one.

Each check returns the value in its plain form: `np.int64(3)` becomes 3.
"""

import math
import numbers
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from types import ModuleType
from typing import Any, TypeGuard, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from solstice import _tree
from solstice._numbers import KINDS, kind_of

_T = TypeVar("_T")
_S = TypeVar("_S", bound=str)


def whole(
    name: str,
    value: object,
    least: int = 1,
    unit: str = "",
    *,
    most: int | None = None,
    error: type[Exception] = ValueError,
) -> int:
    """`whole("batch_size", batch_size, 1, "examples")`: an integer within bounds.

    Args:
        name: the name of the argument.
        value: the given value, an integer of Python, NumPy or JAX. Booleans and floats are not
            allowed.
        least: the lowest allowed value.
        most: the highest allowed value; None for any.
        unit: the unit of the value, for the message.
        error: the exception to raise.

    Raises:
        ValueError: the value is not an integer, or out of bounds.
    """
    found = _index(value)
    if found is not None and found >= least and (most is None or found <= most):
        return found
    bounds = f"{least} or more" if most is None else f"between {least} and {most}"
    expected = f"{bounds} {unit}".rstrip()
    raise error(_message(name, expected, value, None if found is not None else _not_whole(value)))


def whole_or_none(name: str, value: object, least: int = 1, unit: str = "") -> int | None:
    """`whole`, or None."""
    return None if value is None else whole(name, value, least, unit)


def number(
    name: str,
    value: object,
    expected: str = "a finite number",
    fits: Callable[[float], bool] = lambda _: True,
) -> float:
    """`number("decay", decay, "in [0, 1)", lambda x: 0 <= x < 1)`: a real and finite number.

    Raises:
        ValueError: it is not a number, is NaN or infinite, or `fits` refuses it.
    """
    found = _float(value)
    if found is None:
        raise ValueError(_message(name, expected, value, "which is not a number"))
    if not math.isfinite(found) or not fits(found):
        raise ValueError(_message(name, expected, value))
    return found


def positive(name: str, value: object) -> float:
    """`positive("minutes", minutes)`: a number above 0."""
    return number(name, value, "more than 0, and finite", lambda x: x > 0)


def positive_or_none(name: str, value: object) -> float | None:
    """`positive`, or None."""
    return None if value is None else positive(name, value)


def not_negative(name: str, value: object) -> float:
    """`not_negative("beta", beta)`: a number of 0 or more."""
    return number(name, value, "0 or more", lambda x: x >= 0)


def share(name: str, value: object, *, such_as: str = "") -> float:
    """`share("decay", decay, such_as="0.999")`: a number in [0, 1)."""
    example = f", such as {such_as}" if such_as else ""
    return number(name, value, f"in [0, 1){example}", lambda x: 0 <= x < 1)


def probability(name: str, value: object) -> float:
    """`probability("threshold", threshold)`: a number in [0, 1]."""
    return number(name, value, "in [0, 1]", lambda x: 0 <= x <= 1)


def switch(name: str, value: object) -> bool:
    """`switch("shuffle", shuffle)`: True or False, not text or a number.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(_message(name, "True or False", value))
    return bool(cast("Any", value))


def switch_or_none(name: str, value: object) -> bool | None:
    """`switch_or_none("on_device", on_device)`: like `switch`, or None.

    Raises:
        ValueError: it is something else.
    """
    if not (value is None or isinstance(value, bool | np.bool_)):
        raise ValueError(_message(name, "True, False or None", value))
    return None if value is None else bool(cast("Any", value))


def choice(name: str, value: object, allowed: Collection[_S]) -> _S:
    """`choice("mode", mode, ("min", "max"))`: one of several words.

    Raises:
        ValueError: it is something else.
    """
    for word in allowed:
        if isinstance(value, str) and value == word:  # an array would compare by element
            return word
    *others, last = (f'"{word}"' for word in allowed)
    raise ValueError(_message(name, f"{', '.join(others)} or {last}", value))


def text(name: str, value: object, such_as: str) -> str:
    """`text("metric", metric, "loss")`: non-empty text.

    Raises:
        ValueError: it is empty.
        TypeError: it is something else.
    """
    if isinstance(value, str) and value:
        return value
    error = ValueError if isinstance(value, str) else TypeError
    raise error(_message(name, f'text, such as "{such_as}"', value))


def text_or_none(name: str, value: object, such_as: str) -> str | None:
    """`text`, or None."""
    return None if value is None else text(name, value, such_as)


def names(name: str, value: object) -> tuple[str, ...] | None:
    """`names("only", only)`: one name or several, as a tuple; None for all.

    Raises:
        TypeError: it is something else.
    """
    if value is None or isinstance(value, str):
        return value if value is None else (value,)
    found = tuple(value) if _is_several(value) else (None,)
    if not all(isinstance(item, str) for item in found):
        raise TypeError(_message(name, 'a name or several, such as ("loss", "accuracy")', value))
    return cast("tuple[str, ...]", found)


def function(name: str, value: _T, such_as: str) -> _T:
    """`function("log", log, "log=wandb.log")`: a callable.

    Raises:
        TypeError: it is not callable.
    """
    if not callable(value):
        raise TypeError(_message(name, f"a function, as in `{such_as}`", value))
    return value


def function_or_none(name: str, value: _T, such_as: str) -> _T:
    """`function`, or None."""
    return value if value is None else function(name, value, such_as)


def mapping(name: str, value: object, such_as: str) -> dict[str, Any]:
    """`mapping("config", config, '{"rate": 0.1}')`: a dict with text keys; {} for None.

    Raises:
        TypeError: it is something else.
    """
    if value is None:
        return {}
    if not _is_named(value):
        raise TypeError(_message(name, f"a dict with names for keys, such as {such_as}", value))
    return dict(value)


def instance(name: str, value: object, kind: type[_T], expected: str) -> _T:
    """`instance("mask", mask, Masked, "a solstice.data.Masked")`: an instance of a class.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, kind):
        raise TypeError(_message(name, expected, value))
    return value


def real(name: str, value: _T) -> _T:
    """`real("scores", scores)`: an array of real numbers or booleans, returned unchanged.

    Raises:
        TypeError: it holds something else, such as text, None or complex numbers.
        ValueError: the array has been deleted.
    """
    return _holding(("bool", "int", "float"), name, value, "an array of real numbers")


def numeric(name: str, value: _T) -> _T:
    """`numeric("scores", scores)`: like `real`, with complex numbers."""
    return _holding(KINDS, name, value, "an array of numbers")


def integers(name: str, value: _T) -> _T:
    """`integers("targets", labels)`: an array of integers or booleans, returned unchanged.

    Raises:
        TypeError: it holds something else, such as floats.
        ValueError: the array has been deleted.
    """
    return _holding(("bool", "int"), name, value, "an array of integers")


def classes(name: str, value: _T) -> _T:
    """`classes("targets", labels)`: integers, or floats with integer values, unless traced.

    Raises:
        TypeError: it holds something else.
        ValueError: a float is not an integer, or the array has been deleted.
    """
    real(name, value)
    leaves = jax.tree.leaves(value)
    if _type_of(name, value) == "float" and not any(isinstance(x, Tracer) for x in leaves):
        given = _tree.to_numpy(value)
        broken = given[given != np.floor(given)]
        if broken.size:
            raise ValueError(_message(name, "integers", value, f"and holds {broken[0]}"))
    return value


def check_alive(name: str, value: object) -> None:
    """Raises a ValueError if it is a deleted JAX array."""
    if is_deleted(value):
        raise ValueError(
            f"the array {name} has been deleted: it was donated to a compiled function, as by "
            f"`trainer.fit(exp, ..., donate=True)` or `jax.jit(..., donate_argnums=0)`. Use the "
            f"result of that call instead: `exp = trainer.fit(exp, ..., donate=True)`"
        )


def is_deleted(value: object) -> bool:
    """Whether it is a JAX array that was donated or deleted."""
    return isinstance(value, jax.Array) and not isinstance(value, Tracer) and value.is_deleted()


def shown(value: Any) -> str:
    """A value as text for a message: the type of an array, else the `repr`."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and np.shape(value) != ():
        return f"{value.dtype}{list(value.shape)}"
    try:
        return f"{value!r:.60}"
    except Exception:  # of the value's `__repr__`
        return f"a {type(value).__name__}"


def _message(name: str, expected: str, value: object, why: str | None = None) -> str:
    return f"{name} must be {expected}; it is {shown(value)}{f', {why}' if why else ''}"


def _index(value: Any) -> int | None:
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)  # takes True for 1, hence the check above
    except Exception:  # a TypeError, or an error of the value, such as of a deleted array
        return None


def _not_whole(value: Any) -> str:
    is_float = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    return f"a float: write {int(value)}" if is_float else "which is not a whole number"


def _float(value: Any) -> float | None:
    """A real number as a float; None if it is not one, or is too large."""
    is_number = isinstance(value, numbers.Real) or (
        hasattr(value, "dtype")
        and getattr(value, "shape", None) == ()
        and kind_of(value.dtype) in ("int", "float")
    )
    if not is_number or isinstance(value, bool | np.bool_):
        return None
    try:
        return float(value)
    except Exception:  # too large, traced or deleted
        return None


def _is_several(value: object) -> TypeGuard[Iterable[object]]:
    return isinstance(value, Iterable) and not isinstance(value, bytes | bytearray)


def _is_named(value: object) -> TypeGuard[Mapping[str, Any]]:
    is_mapping = isinstance(value, Mapping)
    return is_mapping and all(isinstance(x, str) for x in cast("Mapping[object, object]", value))


def _holding(kinds: Collection[str], name: str, value: _T, expected: str) -> _T:
    if _type_of(name, value) not in kinds:
        raise TypeError(_message(name, expected, value))
    return value


def _type_of(name: str, value: object) -> str:
    """The kind of numbers in an array: "bool", "int", "float", "complex"; "" for other values."""
    leaves = jax.tree.leaves(value)
    for leaf in leaves:
        check_alive(name, leaf)
    try:
        dtype = _dtype_of(value, leaves)
    except Exception:  # a ragged list, or not an array at all
        return ""
    return kind_of(dtype)


def _dtype_of(value: object, leaves: list[Any]) -> np.dtype[Any]:
    if isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return cast("Any", value).dtype
    xp: ModuleType = jnp if any(isinstance(leaf, jax.Array) for leaf in leaves) else np
    return xp.asarray(value).dtype
