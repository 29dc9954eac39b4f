"""The differences between two trees of different structure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import jax

from solstice import _tree

_NOTHING = object()
"""Marks an entry that only the other tree has."""


@dataclass(frozen=True)
class Change:
    """The first place at which the structure of a tree has changed.

    Attributes:
        path: the path, such as `.model.dropout.rate`.
        old, new: the old and the new entry at this path.
        is_static: whether the entry is not a child of its node, such as a static field.
    """

    path: str
    old: object
    new: object
    is_static: bool = False

    def __str__(self) -> str:
        old, new = _in_words(self.old), _in_words(self.new)
        if old == new:
            return f"it was {old} and came back as another one that is not equal to it"
        return f"it was {old} and came back as {new}"

    @property
    def words(self) -> str:
        """`0.1, and 0.2`: both entries."""
        old, new = _in_words(self.old), _in_words(self.new)
        return f"{old}, and {new}" if old != new else f"{old}, and another one, not equal to it"


def first_change(old: object, new: object) -> Change:
    """The first change between two trees whose structures differ."""
    return next(changes(old, new))


def changes(old: object, new: object, path: str = "") -> Iterator[Change]:
    """The changes between two trees; one or more if their structures differ."""
    if type(old) is not type(new):
        yield Change(path, old, new)
        return
    before, after = _children(old), _children(new)
    found = False
    for key in {**before, **after}:
        pair = before.get(key, _NOTHING), after.get(key, _NOTHING)
        if any(value is _NOTHING for value in pair):
            found = True
            yield Change(path + key, *pair)
        elif _tree.structure(pair[0]) != _tree.structure(pair[1]):
            found = True
            yield from changes(*pair, path + key)
    yield from _static_changes(old, new, path, always=not found)


def change_of_state(old: object, new: object) -> str:
    """The first change of structure, shape or dtype between two trees, in words."""
    if _tree.structure(old) != _tree.structure(new):
        change = first_change(old, new)
        return f"`{change.path}`: {change}"
    pairs = zip(_tree.leaves_by_path(old), _tree.leaves(new), strict=True)
    both = (Change(path, before, after) for (path, before), after in pairs)
    found = next((c for c in both if _in_words(c.old) != _in_words(c.new)), None)
    return "another object" if found is None else f"`{found.path}`: {found}"


def _children(node: object) -> dict[str, Any]:
    """The direct children of a node, by key; {} for a leaf."""

    def is_below(child: Any) -> bool:
        return child is not node

    found = cast("Any", jax.tree_util.tree_flatten_with_path(node, is_leaf=is_below))[0]
    return {jax.tree_util.keystr(path): child for path, child in found if path}


def _static_changes(old: object, new: object, path: str, *, always: bool) -> Iterator[Change]:
    """The different attributes that are not children; the whole node if there must be one."""
    before, after = _attributes(old), _attributes(new)
    found = False
    # Private names last, because frameworks use them internally and they explain less.
    for name in sorted({**before, **after}, key=lambda name: name.startswith("_")):
        pair = before.get(name, _NOTHING), after.get(name, _NOTHING)
        if not _is_same(*pair):
            found = True
            yield Change(f"{path}.{name}", *pair, is_static=True)
    if always and not found:
        yield Change(path, old, new, is_static=True)


def _attributes(node: object) -> dict[str, Any]:
    children = _children(node)
    below = {id(child) for child in children.values() if child is not None}
    own = cast("dict[str, Any]", getattr(node, "__dict__", {}))
    return {
        name: value
        for name, value in own.items()
        if f".{name}" not in children and id(value) not in below
    }


def _is_same(one: object, two: object) -> bool:
    try:
        return one is two or bool(one == two)
    except Exception:  # of a custom `__eq__`, or of arrays
        return False


def _in_words(value: Any) -> str:
    if value is _NOTHING:
        return "not there"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return f"{value!r:.60}"
