"""The axes of one leaf: to the order that all layouts share, and back."""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from solstice._types import AnyArray

_PIECE = re.compile(r"(.*)\[(\d+)/(\d+)\]")


@dataclass(frozen=True)
class Place:
    """Where a layout keeps a part of a layer.

    Attributes:
        leaf: the path of the leaf.
        axes: the axes of the leaf.
        wanted: the axes in the order of `AXES`.
        piece: index and number of pieces, if the leaf holds several parts along its outputs.
    """

    leaf: str
    axes: str
    wanted: str
    piece: tuple[int, int] = (0, 1)


def place_of(layer: str, leaf: str, axes: str, wanted: str) -> Place:
    """`place_of("attn", "in_proj_weight[0/3]", "oi", "io")`: the place of a part of a layer."""
    found = _PIECE.fullmatch(leaf)
    name = found[1] if found else leaf
    path = "/".join(filter(None, (layer, name)))
    return Place(path, axes, wanted, (int(found[2]), int(found[3])) if found else (0, 1))


def shape_of(place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the part in the order of `AXES`, by the shape of its leaf.

    Raises:
        ValueError: the leaf has other axes.
    """
    return _order(place, _of_piece(place, shape))[1]


def to_order(place: Place, leaf: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The part that a leaf holds, with axes in the order of `AXES`.

    Raises:
        ValueError: the leaf has other axes.
    """
    order, shape = _order(place, _of_piece(place, leaf.shape))
    at, (index, count) = _along(place, leaf.shape), place.piece
    value = leaf if count == 1 else np.split(leaf, count, at)[index]
    return value.transpose(order).reshape(shape)


def from_order(place: Place, value: np.ndarray[Any, Any], like: AnyArray) -> np.ndarray[Any, Any]:
    """The piece of a leaf that holds this part; all of it, if it holds no other.

    Raises:
        ValueError: the part has another shape than the leaf.
    """
    piece = _of_piece(place, like.shape)
    order, shape = _order(place, piece)
    if value.shape != shape:
        raise ValueError(
            f"{place.leaf} takes {shape} as {', '.join(place.wanted)}; the weights have "
            f"{value.shape}"
        )
    whole = value.reshape([piece[at] for at in order])
    return whole.transpose(np.argsort(order))


def joined(pieces: dict[Place, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """A leaf from the pieces of `from_order`."""
    (place, first), *rest = sorted(pieces.items(), key=lambda item: item[0].piece)
    if not rest:
        return first
    return np.concatenate([first, *(piece for _, piece in rest)], _along(place, first.shape))


def _along(place: Place, shape: tuple[int, ...]) -> int:
    """The axis along which a leaf has its pieces: its first of outputs."""
    return _axes(place, shape).find("o")


def _of_piece(place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the part of a leaf that is one of its pieces."""
    at, (_, count) = _along(place, shape), place.piece
    if shape and shape[at] % count:
        raise ValueError(f"{place.leaf} has the shape {shape}; it holds {count} layers of one size")
    return tuple(size // count if axis == at else size for axis, size in enumerate(shape))


def _order(place: Place, shape: tuple[int, ...]) -> tuple[list[int], tuple[int, ...]]:
    """The axes of a leaf in the order of `AXES`, those of length 1 last, and its shape there."""
    axes = _axes(place, shape)
    wanted = "".join(letter for letter in place.wanted if letter not in "hw")
    spatial = "".join(letter for letter in axes if letter in "dhw")
    letters = spatial + wanted if "h" in place.wanted else wanted
    groups = [[at for at, axis in enumerate(axes) if axis == letter] for letter in (*letters, "1")]
    found = tuple(math.prod(shape[at] for at in group) for group in groups[:-1])
    return [at for group in groups for at in group], found


def _axes(place: Place, shape: tuple[int, ...]) -> str:
    """The letter of each axis of a leaf, with a "1" for each further leading axis of length 1."""
    axes = _spatial(place.axes, len(shape))
    more = len(shape) - len(axes or "")
    if axes is None or any(size != 1 for size in shape[:more]):
        raise ValueError(
            f"{place.leaf} has the shape {shape}; the layout says that its axes are {place.axes!r}"
        )
    return "1" * more + axes


def _spatial(axes: str, rank: int) -> str | None:
    """The axes with as many of "dhw" as a leaf of this rank has; None if it has too few.

    A bias "o11" has as many ones.
    """
    if "hw" in axes:
        dims = rank - len(axes) + 2
        return axes.replace("hw", "dhw"[-dims:]) if dims in (1, 2, 3) else None
    bare = axes.rstrip("1")
    if bare != axes:
        return bare + "1" * (rank - len(bare)) if rank > len(bare) else None
    return axes if rank >= len(axes) else None
