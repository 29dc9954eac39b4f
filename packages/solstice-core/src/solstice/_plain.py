"""The states of callbacks and data sets as JSON: exact numbers, and no pickle."""

import base64
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from solstice import _tree
from solstice._numbers import dtype_of, name_of, to_little_endian, why_not_plain
from solstice._per_member import PerMember, per_member
from solstice._types import AnyArray


def to_plain(
    value: object, where: str, rows: Callable[[list[Any], str], object] = lambda items, where: None
) -> object:
    """A value as JSON: floats in hexadecimal, because they must be exact; arrays as bytes.

    Args:
        value: None, booleans, numbers, text, bytes, arrays, and lists, tuples and dicts of them.
        where: the owner of the value, for messages.
        rows: returns a reference for a list that is stored in a separate file, None for others.

    Raises:
        TypeError: it contains something else.
    """
    # By its exact type, because an IntEnum would come back as a number.
    if value is None or isinstance(value, str) or type(value) in (bool, int):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, list) and (stands := rows(cast("list[Any]", value), where)) is not None:
        return stands
    if isinstance(value, list | tuple):
        items = [to_plain(item, where, rows) for item in cast("list[Any]", value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
        # Pairs, because JSON has only text for keys, and a dict is the mark of a kind here.
        return {"dict": [[to_plain(k, where), to_plain(v, where, rows)] for k, v in pairs]}
    if _tree.is_array(value):
        return _array_to_plain(value, where)
    raise TypeError(
        f"{where} holds {value!r:.60}, a {type(value).__name__}. It must be None, numbers, text, "
        f"bytes or arrays, in lists, tuples or dicts: return values of these types in `state_dict`"
    )


def _unread(about: object) -> list[Any]:
    raise TypeError(f"{about} is in a separate file, which cannot be read here")


def from_plain(plain: object, rows: Callable[[Any], list[Any]] = _unread) -> Any:
    """The inverse of `to_plain`; `rows` reads a list that is stored in a separate file."""
    if isinstance(plain, list):
        return [from_plain(item, rows) for item in cast("list[Any]", plain)]
    if not isinstance(plain, dict):
        return plain
    ((kind, inner),) = cast("dict[str, Any]", plain).items()
    if kind == "rows":
        return rows(inner)
    if kind == "float":
        return float.fromhex(inner)
    if kind == "bytes":
        return base64.b64decode(inner)
    if kind == "tuple":
        return tuple(from_plain(item, rows) for item in inner)
    if kind == "dict":
        return {from_plain(key): from_plain(item, rows) for key, item in inner}
    array = _array_from_plain(*inner)
    if kind == "members":
        return per_member(array)
    return array[()] if kind == "scalar" else array


def _array_from_plain(name: str, shape: list[int], data: str) -> np.ndarray[Any, Any]:
    dtype = dtype_of(name)
    stored = np.frombuffer(base64.b64decode(data), dtype.newbyteorder("<"))
    return stored.reshape(shape).astype(dtype)  # a copy: `frombuffer` is read-only


def _array_to_plain(value: AnyArray | np.generic, where: str) -> dict[str, object]:
    if _tree.is_key(value):
        raise TypeError(
            f"{where} holds a typed PRNG key: keep `jax.random.key_data(key)`, and wrap it again "
            f"with `jax.random.wrap_key_data`"
        )
    kind = "scalar" if isinstance(value, np.generic) else "array"
    if isinstance(value, PerMember):
        kind, value = "members", np.asarray(value)
    if isinstance(value, np.ndarray | np.generic) and (why := why_not_plain(value)):
        raise TypeError(f"{where} holds {why}")
    array = _tree.to_numpy(value)
    data = base64.b64encode(to_little_endian(array).tobytes()).decode()
    return {kind: [name_of(array.dtype), list(array.shape), data]}
