"""Trees as files hold them: arrays and numbers by path, everything else described in words."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from solstice import _tree
from solstice._arguments import check_alive
from solstice._errors import CheckpointError
from solstice._numbers import to_little_endian, why_not_plain

_DIGITS = re.compile(rb"-?[0-9]{1,4300}")
"""Python reads no more digits."""

_SCALARS = {"bool": ("bool",), "float": ("float64",), "complex": ("complex128",)}

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class Stored:
    """A leaf in the form of the file.

    Attributes:
        kind: "array" of JAX, "numpy", "key" (a typed PRNG key), or a Python "bool", "int", "float",
            "complex"; "scalar" of NumPy.
        array: its numbers.
        impl: the implementation of a PRNG key.
    """

    kind: str
    array: np.ndarray[Any, Any]
    impl: str | None = None


_NUMBERS: tuple[type, ...] = (
    jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic, bool, int, float, complex
)  # fmt: skip


def is_stored(leaf: object) -> bool:
    """Whether a leaf holds numbers and goes into the file. Other leaves are described in words."""
    return isinstance(leaf, _NUMBERS)


def stored_leaves(tree: object) -> dict[str, Any]:
    """The leaves that are numbers, by path."""
    return {path: leaf for path, leaf in _tree.leaves_by_path(tree) if is_stored(leaf)}


def kind_of(leaf: object) -> str:
    """The `kind` of a leaf; see `Stored`."""
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return "key" if is_key else "array"
    if isinstance(leaf, np.ndarray):
        return "numpy"
    return "scalar" if isinstance(leaf, np.generic) else type(leaf).__name__


def spans_processes(leaf: object) -> TypeGuard[jax.Array]:
    """Whether an array lies on devices of several processes, so that none may have all of it."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and leaf.size > 0


def stored_or_array(path: str, leaf: Any) -> Stored | jax.Array:
    """The leaf in the form of the file, except an array of JAX, which is large or on a device."""
    if kind_of(leaf) == "array" and isinstance(leaf, jax.Array):
        check_alive(f"`{path}`", leaf)
        return leaf
    return to_stored(path, leaf)


def to_stored(path: str, leaf: Any) -> Stored:
    """The leaf in the form of the file. Arrays on a device are copied to the host."""
    if isinstance(leaf, Stored):
        return leaf
    check_alive(f"`{path}`", leaf)
    kind = kind_of(leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise CheckpointError(f"`{path}` has a shape and no values, {leaf}: nothing to save")
    if spans_processes(leaf) and not leaf.is_fully_replicated:
        raise CheckpointError(
            f"`{path}` is split over the devices of several processes, and none has all of it"
        )
    if kind == "key":
        return Stored(kind, to_host(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf)))
    if kind == "int":
        return Stored(kind, np.frombuffer(str(leaf).encode(), np.uint8))  # of any size
    why = why_not_plain(cast("Any", leaf)) if kind in ("numpy", "scalar") else None
    if why:
        raise CheckpointError(
            f"`{path}` is {why}. A checkpoint keeps numbers: what is not is a static field, or "
            f"kept elsewhere"
        )
    return Stored(kind, to_little_endian(to_host(leaf)))


def to_host(leaf: Any) -> np.ndarray[Any, Any]:
    """The numbers of a leaf on the host, whole.

    Of an array on several devices, `np.asarray` would keep them there as long as the array lives.
    """
    if not isinstance(leaf, jax.Array) or num_devices(leaf.sharding) == 1:
        return _tree.to_numpy(leaf)
    shards = leaf.addressable_shards
    if leaf.is_fully_replicated:
        return _shard_to_host(shards[0])
    whole = np.empty(leaf.shape, leaf.dtype)
    for shard in shards:
        if shard.replica_id == 0:
            whole[shard.index] = _shard_to_host(shard)
    return whole


def _shard_to_host(shard: Any) -> np.ndarray[Any, Any]:
    # The CPU gives its own memory; elsewhere the shard would keep the copy, so take one of a copy.
    is_here = shard.device.platform == "cpu"
    return _tree.to_numpy(shard.data if is_here else jax.device_put(shard.data, may_alias=False))


def is_consistent(stored: Stored) -> bool:
    """Whether the array fits its kind."""
    array = stored.array
    if stored.kind == "int":
        return array.dtype == np.uint8 and bool(_DIGITS.fullmatch(array.tobytes()))
    if stored.kind == "key":
        return stored.impl is not None and array.dtype == np.uint32 and array.ndim > 0
    if stored.kind in _SCALARS:
        return array.shape == () and array.dtype.name in _SCALARS[stored.kind]
    return array.shape == () or stored.kind != "scalar"


def num_devices(sharding: jax.sharding.Sharding) -> int:
    """The number of devices of a sharding, in all processes."""
    return len(cast("set[Any]", sharding.device_set))


def sharding_of(like: Any) -> jax.sharding.Sharding | None:
    """The sharding that a loaded leaf gets; None for JAX's default device.

    What is committed to no device goes to where a step has its other arrays, and so must stay.
    """
    return getattr(like, "sharding", None) if getattr(like, "committed", True) else None


def data_sharding_of(like: Any) -> jax.sharding.Sharding | None:
    """The sharding of the numbers of a leaf, which have one dimension more if it holds keys."""
    sharding = sharding_of(like)
    if isinstance(sharding, jax.sharding.NamedSharding | jax.sharding.SingleDeviceSharding | None):
        return sharding
    is_key = kind_of(like) == "key" and isinstance(like, jax.Array)
    return jax.random.key_data(like).sharding if is_key else sharding


def from_stored(stored: Stored, like: Any) -> object:
    """The saved leaf with the class and the placement of `like`."""
    array = stored.array
    if stored.kind == "key":
        data = placed(array, data_sharding_of(like))
        return cast("Any", jax.random).wrap_key_data(data, impl=stored.impl)
    if stored.kind == "array":
        if getattr(like, "weak_type", False) and array.ndim == 0:
            return _weak(array.item(), sharding_of(like))
        return placed(array, sharding_of(like))
    if stored.kind == "numpy":  # in the byte order of `like`
        return array.astype(np.dtype(like.dtype), copy=False)
    if stored.kind == "scalar":
        return array[()]
    if stored.kind == "int":
        return int(array.tobytes().decode())
    return array.item()


def placed(
    array: np.ndarray[Any, Any] | jax.Array, sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """The numbers on the devices of a sharding; one that was read there stays.

    It may be donated. JAX may read NumPy memory in place, but never writes into it.
    """
    if isinstance(array, jax.Array):
        return array
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding, may_alias=False)
    indices = cast("dict[Any, Any]", sharding.addressable_devices_indices_map(array.shape))
    parts = [jax.device_put(array[i], d, may_alias=False) for d, i in indices.items()]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, parts)


def _weak(number: Any, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """An array of weak type, which only a Python number makes."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(number, sharding)
    return cast("Any", jax.jit(lambda: number, out_shardings=sharding))()


def described(tree: object) -> dict[str, str]:
    """By path, everything except numbers: containers, static fields, functions, static objects.

    It is what must agree between a checkpoint and the tree that it is loaded into.
    """
    found = list(_describe(tree, ""))
    return dict(zip(_distinct(found), [words for _, words, _ in found], strict=True))


def modules(tree: object) -> set[str]:
    """The paths in `described` of Experiments and other Equinox modules: each names a class."""
    found = list(_describe(tree, ""))
    kinds = [is_module for _, _, is_module in found]
    return {path for path, is_module in zip(_distinct(found), kinds, strict=True) if is_module}


def _distinct(found: list[tuple[str, str, bool]]) -> list[str]:
    return _tree.distinct(path for path, _, _ in found)


def _describe(node: object, path: str) -> Iterator[tuple[str, str, bool]]:
    if node is None or is_stored(node):
        if node is None:
            yield path, "None", False
        return
    children = _children(node)
    if children is None:
        yield path, in_words(node), False
        return
    yield path, _name(type(node)), isinstance(node, eqx.Module)
    if isinstance(node, eqx.Module):
        for field in dataclasses.fields(node):
            if field.metadata.get("static", False) and hasattr(node, field.name):
                yield f"{path}.{field.name}", in_words(getattr(node, field.name)), False
    for key, child in children:
        yield from _describe(child, path + key)


def _children(node: object) -> list[tuple[str, Any]] | None:
    """The children one level below, by key; None of a leaf, and of what has none."""

    def is_below(child: object) -> bool:
        return child is not node

    found = cast("Any", jax.tree_util.tree_flatten_with_path(node, is_leaf=is_below))[0]
    if not found or (len(found) == 1 and not found[0][0]):
        return [] if isinstance(node, tuple | list | dict) else None
    return [(jax.tree_util.keystr(path), child) for path, child in found]


def in_words(value: object) -> str:
    """A static value in words, the same in every process."""
    named = callable(value) and hasattr(value, "__qualname__")
    return _name(value) if named else _ADDRESS.sub("", _tree.text_of(value))


def _name(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"
