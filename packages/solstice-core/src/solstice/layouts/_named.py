"""Leaves of trees by names that layouts know: without collections, and with Equinox's states."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from solstice import _tree
from solstice._arguments import check_alive
from solstice._experiment import Experiment
from solstice._stored import placed, sharding_of, to_host
from solstice.compat import Params, State

_COLLECTIONS = ("params/", "batch_stats/")
"""The collections of Linen that layouts know."""

_EQUINOX = {
    "batch_state_index": "state",
    "ema_state_index": "state",
    "batch_counter": "steps",
    "ema_first_time_index": "steps",
}
"""The fields of Equinox's BatchNorm that point into its state, and their names in `EQUINOX`."""


@runtime_checkable
class HasParams(Protocol):
    """A Learner, or an Experiment with one."""

    @property
    def params(self) -> Params: ...

    @property
    def state(self) -> State: ...

    def with_params(self, params: Params, state: State = None) -> Self: ...


@dataclass(frozen=True)
class Named:
    """The leaves of a tree by name, in the order of the tree.

    Attributes:
        leaves: arrays of JAX, shapes, or arrays of NumPy; and what is not an array.
        has_dots: whether names have dots, as in torch, which are slashes here.
    """

    leaves: dict[str, Any]
    has_dots: bool

    @property
    def arrays(self) -> dict[str, Any]:
        """The leaves that are arrays of numbers, or shapes."""
        return {
            name: leaf
            for name, leaf in self.leaves.items()
            if hasattr(leaf, "dtype") and not _tree.is_key(leaf)
        }

    def shown(self, path: str) -> str:
        """A path as the owner of the tree writes it."""
        return path.replace("/", ".") if self.has_dots else path


def named(tree: object) -> Named:
    """The leaves of Params, of a pair of Params and State, or of what has both."""
    parts = _parts(tree)
    paths = _state_paths(parts)
    names = [name for part in parts for name in _names(part, paths)]
    names = [name.removesuffix("/value") for name in names]  # of variables and boxes of Flax
    has_dots = any("." in name for name in names) and not any("/" in name for name in names)
    names = [name.replace(".", "/") for name in names]
    named_leaves = zip(_tree.distinct(names), _tree.leaves(parts), strict=True)
    return Named({name: _array(name, leaf) for name, leaf in named_leaves}, has_dots)


def rebuilt(tree: Any, values: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """The tree with other values, each as the class of array that it replaces."""
    parts = _parts(tree)
    old = zip(named(tree).leaves, _tree.leaves(parts), strict=True)
    new = [_as(values[name], leaf) if name in values else leaf for name, leaf in old]
    found = _tree.unflatten(_tree.structure(parts), new)
    if isinstance(tree, HasParams):
        return tree.with_params(*found)
    return found[0] if len(parts) == 1 else found


def without_bias(tree: object, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves with the averages of Equinox's BatchNorm as it uses them in inference.

    The averages of its mode "batch" start at 0, and it divides them by how far they have come.
    """
    found = dict(leaves)
    norms = _tree.nodes_by_slashes(_parts(tree)[0], lambda node: isinstance(node, eqx.nn.BatchNorm))
    for path, norm in norms.items():
        count = int(found.get(f"{path}/steps", 0))
        if getattr(norm, "mode", "ema") == "batch" and count:
            for name in (f"{path}/state/0", f"{path}/state/1"):
                found[name] = found[name] / np.asarray(1 - norm.momentum**count, found[name].dtype)
    return found


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf may be a weight: a float or complex array, or the shape of one."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _parts(tree: Any) -> tuple[Any, ...]:
    """Params and State, or the tree alone."""
    if isinstance(tree, HasParams):
        return _values_of(tree)
    if isinstance(tree, Experiment):
        raise TypeError(
            f"{type(tree).__name__} has no `with_params`: give the part with its weights, such as "
            f"`exp.params`"
        )
    pair = cast("tuple[Any, ...]", tree) if type(tree) is tuple else ()
    if len(pair) == 2 and not any(map(_tree.is_array, pair)):
        return pair
    return (cast("Any", tree),)


def _values_of(owner: HasParams) -> tuple[Params, State]:
    if owner.params is None:
        raise ValueError(
            f"this {type(owner).__name__} has no params yet: set it up with a batch first, as in "
            f"`exp = exp.setup(batch)`"
        )
    return owner.params, owner.state


def _names(part: object, states: Mapping[object, str]) -> Iterator[str]:
    for path, node in _tree.leaves_with_slashes(part, _is_state):
        if _is_state(node):
            yield from _state_names(node, states)
        else:
            prefix = next((name for name in _COLLECTIONS if path.startswith(name)), "")
            yield path.removeprefix(prefix)


def _is_state(node: object) -> bool:
    return isinstance(node, eqx.nn.State)


def _state_names(node: Any, states: Mapping[object, str]) -> Iterator[str]:
    values, markers = node.tree_flatten()
    for marker, value in zip(markers, values, strict=True):
        for path, _ in _tree.leaves_with_slashes(value):
            yield "/".join(filter(None, (states.get(marker, str(marker)), path)))


def _state_paths(parts: tuple[Any, ...]) -> dict[object, str]:
    """By marker, where a module has a value in its `eqx.nn.State`."""
    found: dict[object, str] = {}
    for part in parts:
        nodes = _tree.nodes_by_slashes(part, lambda node: isinstance(node, eqx.nn.StateIndex))
        for path, node in nodes.items():
            layer, _, name = path.rpartition("/")
            found.setdefault(node.marker, "/".join(filter(None, (layer, _EQUINOX.get(name, name)))))
    return found


def _array(name: str, leaf: Any) -> Any:
    """A leaf as an array of JAX or NumPy or a shape; what is none of them stays."""
    check_alive(name, leaf)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) or not hasattr(leaf, "shape"):
        return leaf
    found = _from_torch(leaf) if _is_torch(leaf) else np.asarray(leaf)
    if found.dtype.kind not in "biufcV":
        raise TypeError(f"{name} must be an array of numbers; it is {leaf!r:.60}")
    return found


def on_host(leaf: Any) -> np.ndarray[Any, Any]:
    """The numbers of a leaf of `named`."""
    return to_host(leaf)


def _as(value: np.ndarray[Any, Any], like: Any) -> Any:
    """The value as the class of array that `like` is."""
    if _is_torch(like):
        return _to_torch(np.asarray(value, order="C"), like)
    if isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        new = np.asarray(value, order="C").astype(like.dtype)
        return placed(new, None if _is_abstract(like) else sharding_of(like))
    return np.asarray(value, order="C").astype(np.asarray(like).dtype)


def _is_abstract(like: Any) -> bool:
    """Whether it is a shape of an array on a mesh without devices, as `jax.eval_shape` gives."""
    return isinstance(getattr(like.sharding, "mesh", None), jax.sharding.AbstractMesh)


def _is_torch(leaf: object) -> bool:
    return "torch" in sys.modules and isinstance(leaf, sys.modules["torch"].Tensor)


def _from_torch(leaf: Any) -> np.ndarray[Any, Any]:
    torch, tensor = sys.modules["torch"], leaf.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # which NumPy does not know
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _to_torch(value: np.ndarray[Any, Any], like: Any) -> Any:
    torch = sys.modules["torch"]
    if like.dtype == torch.bfloat16:
        new = torch.from_numpy(value.astype(ml_dtypes.bfloat16).view(np.int16)).view(torch.bfloat16)
    else:
        new = torch.from_numpy(value.copy()).to(like.dtype)
    return new.to(like.device)
