"""Layouts: paths and axes of common layers' weights in each framework."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._types import AnyArray
from solstice.compat import Params

Layout: TypeAlias = Mapping[str, Mapping[str, tuple[str, str]]]
"""By kind of layer and name of a part: the path of the leaf in its layer, and its axes.

`{"dense": {"kernel": ("weight", "oi"), "bias": ("bias", "o")}}` describes a framework that stores
the kernel of a dense layer with the outputs first. If an axis is split into several, its letter is
repeated: "ioo" is a kernel with the outputs as heads times features. "1" is an additional axis of
length 1; leading ones may be omitted.
"""

Weights: TypeAlias = Mapping[str, Mapping[str, np.ndarray[Any, Any]]]
"""The parts of each layer by name, with axes in the order of `AXES`."""


def _attention(
    query: str, key: str, value: str, out: str, kernel: tuple[str, ...], bias: tuple[str, ...]
) -> dict[str, tuple[str, str]]:
    """The layout of four dense layers.

    `kernel` and `bias` are a leaf's name, its axes, and its axes in the output layer, whose inputs
    are split into heads.
    """
    places = {"query": query, "key": key, "value": value, "out": out}
    return {
        f"{part}_{name}": (f"{place}/{leaf}", out_axes if part == "out" else axes)
        for part, place in places.items()
        for name, (leaf, axes, out_axes) in (("kernel", kernel), ("bias", bias))
    }


AXES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "dense": {"kernel": "io", "bias": "o"},
        "conv": {"kernel": "hwio", "bias": "o"},
        "norm": {"scale": "o", "bias": "o"},
        "embedding": {"table": "vo"},
        "attention": {
            part: axes
            for name in ("query", "key", "value", "out")
            for part, axes in ((f"{name}_kernel", "io"), (f"{name}_bias", "o"))
        },
    }
)
"""The parts of each kind of layer and the order of their axes in `Weights`.

The axes are (h)eight, (w)idth, (i)nputs, (o)utputs and (v)ocabulary.
"""

FLAX: Layout = {
    "dense": {"kernel": ("kernel", "io"), "bias": ("bias", "o")},
    "conv": {"kernel": ("kernel", "hwio"), "bias": ("bias", "o")},
    "norm": {"scale": ("scale", "o"), "bias": ("bias", "o")},
    "embedding": {"table": ("embedding", "vo")},
    "attention": _attention(
        "query", "key", "value", "out", ("kernel", "ioo", "iio"), ("bias", "oo", "o")
    ),
}
"""The layout of Linen and NNX."""

HAIKU: Layout = {
    "dense": {"kernel": ("w", "io"), "bias": ("b", "o")},
    "conv": {"kernel": ("w", "hwio"), "bias": ("b", "o")},
    "norm": {"scale": ("scale", "o"), "bias": ("offset", "o")},
    "embedding": {"table": ("embeddings", "vo")},
    "attention": _attention("query", "key", "value", "linear", ("w", "io", "io"), ("b", "o", "o")),
}

EQUINOX: Layout = {
    "dense": {"kernel": ("weight", "oi"), "bias": ("bias", "o")},
    "conv": {"kernel": ("weight", "oihw"), "bias": ("bias", "o11")},
    "norm": {"scale": ("weight", "o"), "bias": ("bias", "o")},
    "embedding": {"table": ("weight", "vo")},
    "attention": _attention(
        "query_proj", "key_proj", "value_proj", "output_proj",
        ("weight", "oi", "oi"), ("bias", "o", "o"),
    ),
}  # fmt: skip

STAX: Layout = {
    "dense": {"kernel": ("0", "io"), "bias": ("1", "o")},
    "conv": {"kernel": ("0", "hwio"), "bias": ("1", "o")},
    "norm": {"scale": ("1", "o"), "bias": ("0", "o")},
}


def read_weights(params: Params, layers: Mapping[str, tuple[str, str]], layout: Layout) -> Weights:
    """`read_weights(params, {"hidden": ("dense", "Dense_0")}, FLAX)["hidden"]["kernel"]`.

    Args:
        params: the Params of an adapter.
        layers: by a name of your choice, the kind of each layer and its path in `params`, with
            parts joined by "/".
        layout: the layout of the framework.

    Returns:
        The existing parts of each layer, as NumPy arrays with axes in the order of `AXES`.

    Raises:
        KeyError: the kind is not in the layout, or the layer is not in `params`.
        ValueError: a leaf has other axes than in the layout, or `layers` omits a leaf.
    """
    leaves = _tree.leaves_by_slashes(params)
    weights: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for place, (name, part, axes, wanted) in _places(leaves, layers, layout).items():
        weights.setdefault(name, {})[part] = _to_order(place, leaves[place], axes, wanted)
    return weights


def write_weights(
    params: Params, layers: Mapping[str, tuple[str, str]], layout: Layout, weights: Weights
) -> Params:
    """`write_weights(params, layers, HAIKU, weights)`: return Params with these weights.

    Args:
        params: the Params of an adapter, for their structure, shapes and dtypes.
        layers: as for `read_weights`.
        layout: the layout of the framework.
        weights: the result of `read_weights`, possibly for another framework.

    Raises:
        KeyError: as `read_weights`.
        ValueError: as `read_weights`; or a layer has other parts or sizes than in `weights`.
    """
    leaves = _tree.leaves_by_slashes(params)
    places = _places(leaves, layers, layout)
    for name in layers:
        mine = sorted(part for owner, part, _, _ in places.values() if owner == name)
        if mine != sorted(weights.get(name, {})):
            raise ValueError(
                f"the layer {name!r} has {', '.join(mine)} here; the weights have "
                f"{', '.join(sorted(weights.get(name, {}))) or 'no such layer'}. Build both nets "
                f"in the same way"
            )
    new = [
        _from_order(place, weights[name][part], axes, wanted, leaves[place])
        for place, (name, part, axes, wanted) in ((place, places[place]) for place in leaves)
    ]
    return _tree.unflatten(_tree.structure(params), new)


def _places(
    leaves: Mapping[str, Any], layers: Mapping[str, tuple[str, str]], layout: Layout
) -> dict[str, tuple[str, str, str, str]]:
    """By the path of each leaf: layer, part, its axes, and the axes of `Weights`."""
    places: dict[str, tuple[str, str, str, str]] = {}
    for name, (kind, path) in layers.items():
        if kind not in layout:
            raise KeyError(f"this layout has no layer of kind {kind!r}, but {', '.join(layout)}")
        found = {
            "/".join(filter(None, (path, leaf))): (name, part, axes, AXES[kind][part])
            for part, (leaf, axes) in layout[kind].items()
        }
        found = {place: value for place, value in found.items() if place in leaves}
        if not found:
            raise KeyError(
                f"there is no layer of kind {kind!r} at {path!r}; there is {', '.join(leaves)}"
            )
        places |= found
    left_out = [place for place in leaves if place not in places]
    if left_out:
        raise ValueError(f"`layers` leaves out {', '.join(left_out)}")
    return places


def _to_order(place: str, leaf: object, axes: str, wanted: str) -> np.ndarray[Any, Any]:
    value = np.asarray(leaf)
    order, shape = _order(place, value, axes, wanted)
    return value.transpose(order).reshape(shape)


def _from_order(
    place: str, value: np.ndarray[Any, Any], axes: str, wanted: str, like: AnyArray
) -> Array:
    order, shape = _order(place, like, axes, wanted)
    if value.shape != shape:
        raise ValueError(
            f"{place} takes {shape} as {', '.join(wanted)}; the weights have {value.shape}"
        )
    whole = value.reshape([like.shape[at] for at in order])
    return jnp.asarray(whole.transpose(np.argsort(order)), like.dtype)


def _order(
    place: str, value: AnyArray, axes: str, wanted: str
) -> tuple[list[int], tuple[int, ...]]:
    """The axes of a leaf in the order of `Weights`, those of length 1 last, and its shape there."""
    axes = _padded(place, value, axes)
    groups = [[at for at, axis in enumerate(axes) if axis == letter] for letter in (*wanted, "1")]
    shape = tuple(math.prod(value.shape[at] for at in group) for group in groups[:-1])
    return [at for group in groups for at in group], shape


def _padded(place: str, value: AnyArray, axes: str) -> str:
    """The axes, with a "1" for each additional leading axis of length 1."""
    more = value.ndim - len(axes)
    if more < 0 or any(size != 1 for size in value.shape[:more]):
        raise ValueError(
            f"{place} has the shape {value.shape}; the layout says that its axes are {axes!r}"
        )
    return "1" * more + axes
