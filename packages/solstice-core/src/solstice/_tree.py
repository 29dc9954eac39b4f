"""Tree functions of JAX with types for a strict checker, paths of leaves, and copies."""

import operator
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeGuard, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from solstice._types import AnyArray

_T = TypeVar("_T")


def leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """The leaves of a tree."""
    return jax.tree.leaves(tree, is_leaf)


def flatten(tree: object) -> tuple[list[Any], Hashable]:
    """The leaves of a tree, and its structure."""
    return cast("Any", jax.tree.flatten(tree))


_BYTES_AT_A_TIME = 2**22
"""Size of the arrays that are copied together."""


def copies(arrays: list[Any]) -> list[Any]:
    """Copies of the arrays on the same devices, made without compiling anything."""
    plain = [jax.random.key_data(x) if is_key(x) else x for x in arrays]
    here = [x for x in plain if x.is_fully_addressable]
    copied = iter(jax.device_put(here, may_alias=False))
    new = [next(copied) if x.is_fully_addressable else _copy_of_shards(x) for x in plain]
    return [as_key(x, like) if is_key(like) else x for x, like in zip(new, arrays, strict=True)]


def is_array(leaf: object) -> TypeGuard[AnyArray | np.generic]:
    """Whether a leaf is an array of JAX or NumPy, or a scalar of NumPy."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def is_inexact(leaf: object) -> TypeGuard[AnyArray | np.generic]:
    """Whether a leaf is an array of floating-point or complex numbers."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def to_numpy(leaf: Any) -> np.ndarray[Any, Any]:
    """A leaf as an array of NumPy; one on a device by a transfer that `transfer_guard` allows."""
    return np.asarray(jax.device_get(leaf) if isinstance(leaf, jax.Array) else leaf)


def text_of(value: object) -> str:
    """`repr(value)`, which reads the arrays in it, and which `transfer_guard` must not refuse."""
    with jax.transfer_guard("allow"):
        return repr(value)


def is_key(leaf: AnyArray | np.generic) -> TypeGuard[Array]:
    """Whether an array holds typed PRNG keys, such as those of `jax.random.key`."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_key(data: Array, like: Array) -> Array:
    """Typed PRNG keys of this data, of the kind of others."""
    # `jax.device_put(key, may_alias=False)` shares the memory of a key on several devices.
    return cast("Any", jax.random).wrap_key_data(data, impl=jax.random.key_impl(like))


def _copy_of_shards(x: Array) -> Array:
    """A copy of an array on the devices of several processes."""
    shards = [jax.device_put(shard.data, may_alias=False) for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)


def copy_in_place(arrays: list[Any], indices: Sequence[int]) -> None:
    """Replaces these arrays by `copies`, a few MiB at a time, to free unshared originals early.

    Small arrays are copied together, because each call of a copy has a fixed cost.
    """
    for part in parts([arrays[index].nbytes for index in indices]):
        some = indices[part]
        for index, copy in zip(some, copies([arrays[i] for i in some]), strict=True):
            arrays[index] = copy


def parts(sizes: Sequence[int]) -> Iterator[slice]:
    """Slices of a list of arrays of these bytes, with a few MiB in each."""
    start = size = 0
    for stop, nbytes in enumerate(sizes, 1):
        size += nbytes
        if size >= _BYTES_AT_A_TIME or stop == len(sizes):
            yield slice(start, stop)
            start, size = stop, 0


def structure(tree: object) -> Hashable:
    """The structure of a tree."""
    return cast("Any", jax.tree.structure(tree))


def leaves_by_path(tree: object) -> list[tuple[str, Any]]:
    """Each leaf with its path, such as `.params['w']`. No two paths are equal."""
    found = cast("Any", jax.tree_util.tree_leaves_with_path(tree))
    paths = distinct(jax.tree_util.keystr(path) for path, _ in found)
    return [(path, leaf) for path, (_, leaf) in zip(paths, found, strict=True)]


def leaves_by_slashes(tree: object) -> dict[str, Any]:
    """Each leaf by its path, such as `params/layers/0/w`.

    Leaves with the same path, as in `{"a/b": 1, "a": {"b": 2}}`, get the longer paths of
    `leaves_by_path`.
    """
    short = [path for path, _ in leaves_with_slashes(tree)]
    count = Counter(short)
    pairs = zip(short, leaves_by_path(tree), strict=True)
    names = distinct(name if count[name] == 1 else path for name, (path, _) in pairs)
    return dict(zip(names, leaves(tree), strict=True))


def distinct(names: Iterable[str]) -> list[str]:
    """The names, with numbers after repeated ones: `.w`, `.w#2`.

    Two children of a pytree node may have the same key, because the author of the node chooses it.
    """
    found: dict[str, None] = {}
    for name in names:
        new, index = name, 2
        while new in found:
            new, index = f"{name}#{index}", index + 1
        found[new] = None
    return list(found)


def leaves_with_slashes(
    tree: object, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[str, Any]]:
    """Each leaf with its path, such as `params/layers/0/w`. Paths may be equal."""
    found = cast("Any", jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf))
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in found]


def nodes_by_slashes(tree: object, is_one: Callable[[Any], bool]) -> dict[str, Any]:
    """Each outermost node for which `is_one` is true, by path."""
    return {path: node for path, node in leaves_with_slashes(tree, is_one) if is_one(node)}


def unflatten(structure: Hashable, leaves: Iterable[object]) -> Any:
    """`jax.tree.unflatten`."""
    return jax.tree.unflatten(structure, leaves)


def map(function: Callable[..., object], tree: _T, *rest: object) -> _T:  # noqa: A001, always `_tree.map`
    """`jax.tree.map`."""
    return jax.tree.map(function, tree, *rest)


def row(tree: _T, index: object) -> _T:
    """Each leaf at one index of axis 0."""
    return map(operator.itemgetter(index), tree)


def wide(leaf: Array) -> Array:
    """A float array in float32 or wider, because sums in half precision lose digits."""
    return leaf if leaf.dtype.itemsize >= 4 else leaf.astype(np.float32)


def in_dtype_of(leaf: Array, like: Array) -> Array:
    """An array in the dtype of another."""
    return leaf if leaf.dtype == like.dtype else leaf.astype(like.dtype)


def floats_as(dtype: DTypeLike, tree: _T) -> _T:
    """A tree with its floating-point arrays in another dtype."""

    def cast_one(leaf: object) -> object:
        if is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.astype(dtype)
        return leaf

    return map(cast_one, tree)


def eval_shape(function: Callable[..., Any], *arguments: object) -> Any:
    """`jax.eval_shape`."""
    return jax.eval_shape(function, *arguments)
