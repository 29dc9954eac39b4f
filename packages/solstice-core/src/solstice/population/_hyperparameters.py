"""Hyperparameters: one array for each, with the members on axis 0."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice import _tree
from solstice._types import AnyArray

Hyperparameters: TypeAlias = dict[str, Array]
"""The value of each member, by the name of the argument of `make`."""


def grid(**values: ArrayLike | range) -> dict[str, AnyArray]:
    """`grid(rate=[1e-3, 1e-2], seed=[0, 1, 2])`: all combinations, one member for each.

    ```python
    pop = solstice.Population(make, **solstice.grid(rate=[1e-3, 1e-2], seed=range(3)))
    pop.hyperparameters["rate"]  # [0.001, 0.001, 0.001, 0.01, 0.01, 0.01]
    pop.hyperparameters["seed"]  # [0, 1, 2, 0, 1, 2]
    ```

    The last argument changes first.

    Args:
        **values: the values of each hyperparameter, on axis 0.

    Returns:
        An array for each hyperparameter. Its length is the number of combinations.

    Raises:
        ValueError: there are no hyperparameters, or one of them has no values.
    """
    if not values:
        raise ValueError("a grid needs hyperparameters: `grid(rate=[1e-3, 1e-2], seed=range(3))`")
    arrays = {name: _as_array(name, value) for name, value in values.items()}
    arrays = {name: x if x.ndim else x[None] for name, x in arrays.items()}
    for name, array in arrays.items():
        _check_not_empty(name, array)
    rows = np.indices([len(array) for array in arrays.values()]).reshape(len(arrays), -1)
    return {name: array[row] for (name, array), row in zip(arrays.items(), rows, strict=True)}


def checked(make: Callable[..., Any], values: Mapping[str, Any]) -> Hyperparameters:
    """The hyperparameters of a population as arrays of one length; scalars are repeated.

    Raises:
        TypeError: there are none, or `make` does not take them.
        ValueError: they are not numbers, or differ in length.
    """
    if not values:
        raise TypeError(
            "a Population needs the values of the hyperparameters: `Population(make, "
            "rate=jnp.geomspace(1e-4, 1e-2, 8))` makes 8 members by `make(rate=...)`"
        )
    _check_signature(make, values)
    arrays = {name: _as_jax(name, value) for name, value in values.items()}
    lengths = {name: array.shape[0] for name, array in arrays.items() if array.ndim}
    if not lengths:
        name = next(iter(arrays))
        raise ValueError(
            f"a Population needs an array with one value for each member; {name} is a single "
            f"value. Write `{name}=jnp.array([...])`, or `{name}=[{name}]` for one member"
        )
    if len({*lengths.values()}) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(
            f"the hyperparameters must have one value for each member: {found}. For all "
            f"combinations, write `Population(make, **solstice.grid("
            f"{', '.join(f'{name}=...' for name in arrays)}))`"
        )
    for name in lengths:
        _check_not_empty(name, arrays[name])
    size = next(iter(lengths.values()))
    return {name: x if x.ndim else jnp.broadcast_to(x, (size,)) for name, x in arrays.items()}


def one_of(hyperparameters: Hyperparameters, row: int) -> dict[str, Array]:
    """The hyperparameters of one member, as scalars of JAX, like traced ones."""
    return {name: values[row] for name, values in hyperparameters.items()}


def numbers_of(hyperparameters: Hyperparameters, row: int) -> dict[str, Any]:
    """The same as scalars of NumPy, which a static field can hold; keys stay arrays of JAX."""
    return {name: _number(value) for name, value in one_of(hyperparameters, row).items()}


def in_words(hyperparameters: Hyperparameters) -> str:
    """`rate=0.0003 ... 0.03, seed=0 ... 15`: the first and the last value of each."""
    return ", ".join(f"{name}={_ends(values)}" for name, values in hyperparameters.items())


def fingerprint(hyperparameters: Hyperparameters) -> str:
    """The hyperparameters in words, with a hash of their values."""
    digest = hashlib.sha256()
    for name, values in hyperparameters.items():
        data = jax.random.key_data(values) if _tree.is_key(values) else values
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(_tree.to_numpy(data).tobytes())
    found = in_words(hyperparameters)
    return f"{found} ({digest.hexdigest()[:8]})" if found else ""


def _ends(values: Array) -> str:
    if not jnp.issubdtype(values.dtype, jnp.number) or values.ndim > 1:
        return f"{values.dtype}{list(values.shape)}"
    first, last = (_short(values[row]) for row in (0, -1))
    return first if len(values) == 1 else f"{first} ... {last}"


def _short(value: Array) -> str:
    number = _tree.to_numpy(value).item()
    return str(number) if isinstance(number, int) else f"{number:.4g}"


def _number(value: Array) -> Any:
    return value if _tree.is_key(value) else _tree.to_numpy(value)[()]


def _as_array(name: str, value: Any) -> AnyArray:
    if isinstance(value, jax.Array):
        return value
    try:
        return np.asarray(list(value) if isinstance(value, range) else value)
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"the values of {name} must be an array of numbers: {error}") from None


def _as_jax(name: str, value: Any) -> Array:
    """The values as an array of JAX.

    Raises:
        ValueError: they are not numbers, or change in JAX's dtypes.
    """
    given = _as_array(name, value)
    if isinstance(given, Array):
        return given
    if given.dtype.kind not in "biufc" and not jnp.issubdtype(given.dtype, jnp.number):
        raise ValueError(
            f"the values of {name} must be numbers, which one program can take; they are "
            f"{given.tolist()!r:.60}. Make one Population for each of them"
        )
    array = jnp.asarray(given)
    if given.dtype.kind in "iu" and not np.array_equal(_tree.to_numpy(array), given):
        raise ValueError(
            f"the values of {name} do not fit into {array.dtype}, JAX's integers: "
            f"{given.tolist()!r:.60}. Use smaller ones, or set `jax_enable_x64`"
        )
    return array


def _check_not_empty(name: str, array: AnyArray) -> None:
    if array.shape[0] == 0:
        raise ValueError(f"{name} has no values: a population needs one member or more")


def _check_signature(make: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raises a TypeError if `make` does not take these keywords."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # a builtin does not always show its signature
        return
    kinds = inspect.Parameter
    named = (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    known = {name: one for name, one in signature.parameters.items() if one.kind in named}
    takes_all = any(one.kind == kinds.VAR_KEYWORD for one in signature.parameters.values())
    name = str(getattr(make, "__name__", "make"))
    unknown = [] if takes_all else [key for key in values if key not in known]
    if unknown:
        raise TypeError(
            f"{name}{signature!s:.100} has no argument {unknown[0]!r}. Write `def "
            f"{name if name.isidentifier() else 'make'}({', '.join(values)}): ...`"
        )
    missing = [key for key, one in known.items() if one.default is kinds.empty]
    missing = [key for key in missing if key not in values]
    if missing:
        given = ", ".join(f"{key}=..." for key in values)
        raise TypeError(
            f"{name}{signature!s:.100} needs a value of {missing[0]!r} for each member: write "
            f"`Population({name if name.isidentifier() else 'make'}, {given}, {missing[0]}=...)`"
        )


def as_mapping(given: object) -> dict[str, Any]:
    """The second argument of a Population, a dict of hyperparameters or None."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"the hyperparameters must be a dict, or keywords as in `Population(make, "
            f"rate=[1e-3, 1e-2])`; they are {given!r:.60}"
        )
    return dict(cast("Mapping[str, Any]", given))
