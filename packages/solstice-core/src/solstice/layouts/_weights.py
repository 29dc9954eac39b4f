"""Weights of layers that are named one by one: read from Params, and written into others."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from solstice import _tree
from solstice.compat import Params
from solstice.layouts._axes import Place, from_order, joined, place_of, to_order
from solstice.layouts._known import AXES, Layout

Weights: TypeAlias = Mapping[str, Mapping[str, np.ndarray[Any, Any]]]
"""The parts of each layer by name, with axes in the order of `AXES`."""


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
    for leaf, entries in _places(leaves, layers, layout).items():
        for name, part, place in entries:
            weights.setdefault(name, {})[part] = to_order(place, _tree.to_numpy(leaves[leaf]))
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
        mine = sorted(part for each in places.values() for owner, part, _ in each if owner == name)
        if mine != sorted(weights.get(name, {})):
            raise ValueError(
                f"the layer {name!r} has {', '.join(mine)} here; the weights have "
                f"{', '.join(sorted(weights.get(name, {}))) or 'no such layer'}. Build both nets "
                f"in the same way"
            )
    new = [
        joined({p: from_order(p, weights[name][part], like) for name, part, p in places[leaf]})
        for leaf, like in leaves.items()
    ]
    arrays = [jnp.asarray(x, like.dtype) for x, like in zip(new, leaves.values(), strict=True)]
    return _tree.unflatten(_tree.structure(params), arrays)


def _places(
    leaves: Mapping[str, Any], layers: Mapping[str, tuple[str, str]], layout: Layout
) -> dict[str, list[tuple[str, str, Place]]]:
    """By the path of each leaf: the layers and parts that it holds, and their places."""
    places: dict[str, list[tuple[str, str, Place]]] = {}
    for name, (kind, path) in layers.items():
        if kind not in layout:
            raise KeyError(f"this layout has no layer of kind {kind!r}, but {', '.join(layout)}")
        here = [
            (name, part, place_of(path, *layout[kind][part], wanted))
            for part, wanted in AXES[kind].items()
            if part in layout[kind]
        ]
        found = [entry for entry in here if entry[2].leaf in leaves]
        if not found:
            raise KeyError(
                f"there is no layer of kind {kind!r} at {path!r}; there is {', '.join(leaves)}"
            )
        places |= {place.leaf: [] for _, _, place in found}
        for entry in found:
            places[entry[2].leaf].append(entry)
    left_out = [place for place in leaves if place not in places]
    if left_out:
        raise ValueError(f"`layers` leaves out {', '.join(left_out)}")
    return places
