"""Layouts by name: those of this package, and installed ones; and the layout of given leaves."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import equinox as eqx

from solstice import _tree
from solstice.compat import AdapterError, layout_claims, load_layout
from solstice.layouts._known import EQUINOX, FLAX, HAIKU, KERAS, STAX, TORCH, Layout
from solstice.layouts._units import Unit, misfit, units_of

_KNOWN: dict[str, Layout] = {
    "flax": FLAX,
    "nnx": FLAX,
    "haiku": HAIKU,
    "equinox": EQUINOX,
    "stax": STAX,
    "torch": TORCH,
    "keras": KERAS,
}


def layout_names() -> list[str]:
    """The names that `convert` takes for `layout`, sorted."""
    return sorted({*_KNOWN, *(claim.prefix for claim in layout_claims())})


def layout_of(argument: str, given: object) -> Layout:
    """The layout of an argument.

    Raises:
        ValueError: no layout has this name, or several packages have one.
        TypeError: it is neither a name nor a layout.
        AdapterError: the package of a layout is broken.
    """
    if isinstance(given, str):
        return _KNOWN[given] if given in _KNOWN else _installed(argument, given)
    if not _is_layout(given):
        raise TypeError(
            f"{argument} must be a name, such as 'torch', or a layout, such as "
            f"{{'dense': {{'kernel': ('weight', 'oi')}}}}; it is {given!r:.60}"
        )
    return cast("Layout", given)


def layout_for(tree: object, leaves: Mapping[str, Any], given: object) -> Layout:
    """The layout of `like`: the given one, or that which describes the leaves best.

    Raises:
        ValueError: several layouts describe the leaves, and differ.
    """
    if given is not None:
        return layout_of("like_layout", given)
    found = _KNOWN | _others()
    # Their names of leaves are the same.
    is_module = bool(_tree.nodes_by_slashes(tree, lambda node: isinstance(node, eqx.Module)))
    del found["torch" if is_module else "equinox"]
    units = {name: units_of(leaves, layout) for name, layout in found.items()}
    fewest = min(map(misfit, units.values()))
    best = [name for name in found if misfit(units[name]) == fewest]
    if any(_described(units[name]) != _described(units[best[0]]) for name in best):
        raise ValueError(
            f"`like` may have the layout {' or '.join(map(repr, best))}: write "
            f"`like_layout={best[0]!r}`"
        )
    return found[best[0]]


def _others() -> dict[str, Layout]:
    """The installed layouts; one that is broken or there twice is left out."""
    found: dict[str, Layout] = {}
    for name in {claim.prefix for claim in layout_claims()} - {*_KNOWN}:
        with suppress(AdapterError, TypeError, ValueError):
            found[name] = _installed("like_layout", name)
    return found


def _described(units: list[Unit]) -> list[object]:
    return [(unit.forms, unit.shapes) for unit in units]


def _installed(argument: str, name: str) -> Layout:
    claims = [claim for claim in layout_claims() if claim.prefix == name]
    if not claims:
        raise ValueError(
            f"{argument}={name!r} is not a layout; there is {', '.join(layout_names())}"
        )
    if len(claims) > 1:
        raise ValueError(
            f"{argument}={name!r} is a layout of several packages: "
            f"{', '.join(map(str, claims))}. Give the layout itself, or uninstall one"
        )
    layout: Any = load_layout(claims[0])
    if not _is_layout(layout):
        raise TypeError(f"{argument}={name!r} is not a layout, but {layout!r:.60}: {claims[0]}")
    return layout


def _is_layout(given: object) -> bool:
    if not isinstance(given, Mapping) or not given:
        return False
    kinds = cast("Mapping[Any, Any]", given)
    return all(isinstance(kind, str) and _are_parts(parts) for kind, parts in kinds.items())


def _are_parts(parts: object) -> bool:
    if not isinstance(parts, Mapping):
        return False
    entries = cast("Mapping[Any, Any]", parts).values()
    return all(isinstance(entry, tuple) and len(cast("Any", entry)) == 2 for entry in entries)
