"""Packing: the outputs of a step as a tree that a compiled call can return."""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct, lax
from jax.tree_util import register_static

from solstice import _tree
from solstice._types import PyTree


@register_static
class _Constant:
    """A leaf of outputs that is not an array, as a static node of a compiled call's result."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and is_same_constant(self.value, other.value)

    def __hash__(self) -> int:
        return hash(type(self.value))  # the value may be unhashable


def is_same_constant(old: object, new: object) -> bool:
    """Whether two constants are equal and of one type, because 1 == 1.0 == True."""
    if old is new:
        return True
    try:
        return type(old) is type(new) and bool(old == new)
    except Exception:  # of a custom `__eq__`, or of arrays
        return False


def pack(tree: PyTree) -> PyTree:
    """A tree that a compiled function can return: numbers as arrays, other leaves as constants."""

    def leaf(value: Any) -> Array | _Constant:
        return strong(jnp.asarray(value)) if eqx.is_array_like(value) else _Constant(value)

    return _tree.map(leaf, tree)


def unpack(tree: PyTree) -> PyTree:
    """The inverse of `pack`."""

    def is_constant(node: object) -> bool:
        return isinstance(node, _Constant)

    def value(node: object) -> object:
        return node.value if isinstance(node, _Constant) else node

    return jax.tree.map(value, tree, is_leaf=is_constant)


def type_of(x: Any) -> ShapeDtypeStruct:
    """The shape, JAX's dtype, and whether the type is weak."""
    # Typed PRNG keys have an extended dtype, which is refused by default.
    dtype = jax.dtypes.canonicalize_dtype(x.dtype, allow_extended_dtype=True)
    return ShapeDtypeStruct(x.shape, dtype, weak_type=is_weak(x))


def types_of(tree: PyTree) -> tuple[ShapeDtypeStruct, ...]:
    """The type of each array of a tree."""
    return tuple(type_of(leaf) for leaf in _tree.leaves(tree))


def as_jax(leaf: Any) -> Array:
    """A number or array as an array of JAX."""
    if isinstance(leaf, Array):
        return leaf
    # `device_put`, because `jax.transfer_guard` refuses other transfers. It may share the memory of
    # a NumPy array, so of a copy.
    return jax.device_put(np.array(cast("Any", leaf)) if isinstance(leaf, np.ndarray) else leaf)


def as_type(x: Array, like: ShapeDtypeStruct) -> Array:
    """An array in the dtype of another, and weak only if that is."""
    if x.dtype != like.dtype:
        x = x.astype(like.dtype)
    return x if is_weak(like) else strong(x)


def weak_as(tree: PyTree, like: PyTree) -> PyTree:
    """A tree whose numbers are weakly typed where those of another are, as a checkpoint is read.

    Only a Python number makes a weak type, so each is read from the device.
    """
    weak = {path for path, leaf in _tree.leaves_by_path(like) if is_weak(leaf)}
    leaves = [_weak(leaf) if path in weak else leaf for path, leaf in _tree.leaves_by_path(tree)]
    return _tree.unflatten(_tree.structure(tree), leaves)


def _weak(leaf: Any) -> Any:
    is_number = _tree.is_array(leaf) and np.ndim(leaf) == 0
    return jax.device_put(cast("Any", leaf).item()) if is_number and not is_weak(leaf) else leaf


def strong(x: Array) -> Array:
    """The same array without a weak type, which would compile a second program."""
    return lax.convert_element_type(x, x.dtype) if is_weak(x) else x


def is_weak(x: object) -> bool:
    """Whether an array is weakly typed, as Python numbers are."""
    return getattr(x, "weak_type", False)  # typed PRNG keys have no such attribute
