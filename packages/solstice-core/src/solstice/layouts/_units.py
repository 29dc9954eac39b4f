"""The layers in a set of leaves, as a layout describes them, and the layout that describes most."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import TypeAlias

import jax

from solstice._types import AnyArray
from solstice.layouts._axes import Place, place_of, shape_of
from solstice.layouts._known import AXES, Layout

Shaped: TypeAlias = AnyArray | jax.ShapeDtypeStruct
Parts: TypeAlias = Mapping[str, Place]

AVERAGES = ("mean", "var")
"""The parts of a norm that training does not read."""

_ANY_PART = ("norm",)
"""Kinds of layers that may be without their first part."""


@dataclass(frozen=True, eq=False)
class Unit:
    """A layer of a net; each projection of an attention is one.

    Attributes:
        path: its path; of an array that no layer has, the path of the array.
        forms: by kind, the places of its parts. A table of torch may be that of a dense layer.
        shapes: by kind, the shapes of its parts in the order of `AXES`.
        is_projection: whether it is one of the layers of an attention.
    """

    path: str
    forms: Mapping[str, Parts]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    is_projection: bool = False

    @property
    def signatures(self) -> frozenset[object]:
        """Kind and shapes, once for each kind: equal in layers that may be the same.

        Of an array that is in no layer, the name too, because its axes may mean anything.
        """
        name = self.path.rpartition("/")[2].lower() if "array" in self.forms else ""
        return frozenset(
            (kind, name, *sorted(item for item in shapes.items() if item[0] not in AVERAGES))
            for kind, shapes in self.shapes.items()
        )

    def __str__(self) -> str:
        kind, shapes = next(iter(self.shapes.items()))
        return f"{kind}: " + ", ".join(f"{part} {shape}" for part, shape in shapes.items())


def units_of(leaves: Mapping[str, Shaped], layout: Layout) -> list[Unit]:
    """The layers that hold these leaves; each leaf that no layer has is a unit of kind "array"."""
    free = dict(leaves)
    found = list(_attentions(free, layout))
    for path in _layer_paths(free, layout):
        unit = _unit_at(path, free, layout)
        if unit.forms:
            found.append(unit)
            _take(free, unit)
    order = {leaf: number for number, leaf in enumerate(leaves)}
    found += [_array(path, leaf) for path, leaf in free.items()]
    return sorted(found, key=lambda unit: min(order[place.leaf] for place in _places(unit)))


def misfit(units: list[Unit]) -> tuple[int, int]:
    """How badly a layout describes leaves: how many are in no layer, and then in no attention."""
    return sum("array" in u.forms for u in units), -sum(u.is_projection for u in units)


def _attentions(free: dict[str, Shaped], layout: Layout) -> Iterator[Unit]:
    """The four projections of each attention, which are dense layers."""
    parts = layout.get("attention", {})
    for layer in _prefixes(free, [place_of("", *entry, "").leaf for entry in parts.values()]):
        split = {
            name: {
                part: place_of(layer, *parts[f"{name}_{part}"], wanted)
                for part, wanted in AXES["dense"].items()
                if f"{name}_{part}" in parts
            }
            for name in ("query", "key", "value", "out")
        }
        units = [
            replace(_unit(f"{layer}/{name}".lstrip("/"), {"dense": form}, free), is_projection=True)
            for name, form in split.items()
        ]
        if all(unit.forms for unit in units):
            yield from units
            for unit in units:
                _take(free, unit)


def _layer_paths(free: Mapping[str, Shaped], layout: Layout) -> list[str]:
    names = [leaf for kind in layout if kind != "attention" for leaf, _ in layout[kind].values()]
    return _prefixes(free, names)


def _prefixes(leaves: Mapping[str, Shaped], names: list[str]) -> list[str]:
    """The paths of the layers that may have a leaf of one of these names."""
    found: dict[str, None] = {}
    for leaf in leaves:
        for name in names:
            if not name or leaf == name or leaf.endswith(f"/{name}"):
                found[leaf.removesuffix(name).rstrip("/") if name else leaf] = None
    return list(found)


def _unit_at(path: str, free: Mapping[str, Shaped], layout: Layout) -> Unit:
    forms = {
        kind: {
            part: place_of(path, leaf, axes, AXES[kind][part.partition("_")[0]] if axes else "")
            for part, (leaf, axes) in layout[kind].items()
        }
        for kind in layout
        if kind in AXES and kind != "attention"
    }
    return _unit(path, forms, free)


def _unit(path: str, forms: Mapping[str, Parts], free: Mapping[str, Shaped]) -> Unit:
    """A unit with those of the forms that fit the leaves, and describe most of them."""
    found: dict[str, Parts] = {}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for kind, parts in forms.items():
        there = {part: place for part, place in parts.items() if place.leaf in free}
        sizes = _shapes(there, free)
        if sizes and (kind in _ANY_PART or next(iter(parts)) in there) and _agree(sizes):
            found[kind], shapes[kind] = there, sizes
    most = max(map(len, found.values()), default=0)
    best = {kind: parts for kind, parts in found.items() if len(parts) == most}
    return Unit(path, best, {kind: shapes[kind] for kind in best})


def _shapes(parts: Parts, free: Mapping[str, Shaped]) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the parts that all frameworks have; None if a leaf has other axes."""
    try:
        shapes = {part: shape_of(place, free[place.leaf].shape) for part, place in parts.items()}
    except ValueError:
        return None
    return {part: shape for part, shape in shapes.items() if "_" not in part}


def _agree(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether all parts have the same number of outputs, which are the last axis."""
    return len({shape[-1] for shape in shapes.values()}) == 1


def _array(path: str, leaf: Shaped) -> Unit:
    axes = ascii_uppercase[: len(leaf.shape)]  # in their own order, whatever they are
    place = Place(path, axes, axes)
    return Unit(path, {"array": {"value": place}}, {"array": {"value": tuple(leaf.shape)}})


def _places(unit: Unit) -> Iterator[Place]:
    for parts in unit.forms.values():
        yield from parts.values()


def _take(free: dict[str, Shaped], unit: Unit) -> None:
    for place in _places(unit):
        free.pop(place.leaf, None)
