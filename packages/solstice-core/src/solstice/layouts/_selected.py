"""The pairs of layers that the user names, and all others; errors with the argument to write."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice, zip_longest

from solstice.layouts._match import Ambiguous, Pairs, matched
from solstice.layouts._units import Unit


@dataclass(frozen=True)
class Sides:
    """The layers of both nets, and how their owners write a path."""

    mine: list[Unit]
    theirs: list[Unit]
    my_name: Callable[[str], str]
    their_name: Callable[[str], str]

    def my_path(self, unit: Unit) -> str:
        """The path of a layer that gets weights."""
        return self.my_name(unit.path)

    def their_path(self, unit: Unit) -> str:
        """The path of a layer that has weights."""
        return self.their_name(unit.path)


def pairs_of(sides: Sides, layers: Mapping[str, str | None]) -> Pairs:
    """The pairs of layers, of which each layer must be in one, unless `layers` says otherwise.

    Raises:
        ValueError: a layer has no counterpart, or several.
    """
    pairs: Pairs = []
    mine, used = sides.mine, list[Unit]()
    for path, other in layers.items():
        for some, others in _chosen(sides, mine, path, other):
            pairs += [] if other is None else _named_pairs(sides, some, others)
            mine, used = _without(mine, some), [*used, *others]
    return pairs + _matched(sides, mine, _without(sides.theirs, used))


def _without(units: list[Unit], others: list[Unit]) -> list[Unit]:
    return [unit for unit in units if unit not in others]


def _chosen(
    sides: Sides, mine: list[Unit], path: str, other: str | None
) -> Iterator[tuple[list[Unit], list[Unit]]]:
    """The layers of an entry of `layers`, once for each number that "*" stands for."""
    some = _under(path, mine, sides.my_name)
    if not some:
        raise ValueError(_not_there("layers", path, "like", map(sides.my_path, mine)))
    if other is None:
        yield [unit for units in some.values() for unit in units], []
        return
    others = _under(other, sides.theirs, sides.their_name)
    if not others:
        shown = map(sides.their_path, sides.theirs)
        raise ValueError(_not_there("layers", other, "the source", shown))
    if len(some) != len(others):
        raise ValueError(
            f"layers={{{path!r}: {other!r}}}: {path!r} stands for {len(some)} layers or modules, "
            f"and {other!r} for {len(others)}"
        )
    for one, two in zip(sorted(some), sorted(others), strict=True):
        yield some[one], others[two]


def _under(
    path: str, units: list[Unit], name: Callable[[str], str]
) -> dict[tuple[int, ...], list[Unit]]:
    """The layers at a path or below it, by the numbers in place of its stars."""
    separator = r"[./]" if name("a/b") == "a.b" else "/"
    pattern = re.compile(re.escape(path).replace(r"\*", r"(\d*)") + rf"({separator}.*)?")
    found: dict[tuple[int, ...], list[Unit]] = {}
    for unit in units:
        if match := pattern.fullmatch(name(unit.path)):
            numbers = tuple(int(text or 0) for text in match.groups()[:-1])
            found.setdefault(numbers, []).append(unit)
    return found


def _named_pairs(sides: Sides, mine: list[Unit], theirs: list[Unit]) -> Pairs:
    is_array = len(mine) == len(theirs) == 1 and "array" in mine[0].forms
    if is_array and mine[0].shapes == theirs[0].shapes:
        return [(mine[0], theirs[0])]
    return _matched(sides, mine, theirs)


def _matched(sides: Sides, mine: list[Unit], theirs: list[Unit]) -> Pairs:
    """The pairs of all of these layers."""
    try:
        pairs = matched(mine, theirs)
    except Ambiguous as error:
        raise ValueError(_which(sides, error.mine, error.theirs)) from None
    mine = _without(mine, [unit for unit, _ in pairs])
    theirs = _without(theirs, [unit for _, unit in pairs])
    if mine or theirs:
        nothing = "" if pairs else "no layer has a counterpart; see whether `layout` is right. "
        raise ValueError(nothing + _left_over(sides, mine, theirs))
    return pairs


def _which(sides: Sides, mine: list[Unit], theirs: list[Unit]) -> str:
    one, other = [sides.my_path(u) for u in mine], [sides.their_path(u) for u in theirs]
    return (
        f"several layers are alike ({mine[0]}): {_some(one)} in `like`, and {_some(other)} in the "
        f"source. Write which is which, such as `layers={_guess(sides, mine, theirs)}`; None keeps "
        f"the values of `like`, and a '*' in both paths stands for a number"
    )


def _guess(sides: Sides, mine: list[Unit], theirs: list[Unit]) -> dict[str, str | None]:
    """One of the ways to pair these layers, with stars if that is possible."""
    some = _patterns(mine, sides.mine, sides.my_name)
    others = _patterns(theirs, sides.theirs, sides.their_name)
    pairs = [*zip(*(sorted(each, key=each.__getitem__) for each in (some, others)), strict=False)]
    if len(some) == len(others) and all(some[x] == others[y] for x, y in pairs):
        return dict[str, str | None](pairs)
    one, other = map(sides.my_path, mine), map(sides.their_path, theirs)
    return dict(zip_longest(one, islice(other, len(mine))))


def _patterns(units: list[Unit], every: list[Unit], name: Callable[[str], str]) -> dict[str, int]:
    """The paths of layers, with a star for their first number where that is right; their counts."""
    found: dict[str, int] = {}
    for unit in units:
        pattern = re.sub(r"\d+", "*", name(unit.path), count=1)
        group = [one for some in _under(pattern, every, name).values() for one in some]
        is_right = len(group) > 1 and all(one in units for one in group)
        found[pattern if is_right else name(unit.path)] = len(group) if is_right else 1
    return found


def _left_over(sides: Sides, mine: list[Unit], theirs: list[Unit]) -> str:
    same = {
        sides.my_path(one): sides.their_path(other)
        for one in mine
        for other in theirs
        if "array" in one.forms and one.shapes == other.shapes
    }
    lines = [f"if these are the same, write `layers={same}`"] if same else []
    if mine:
        found = [f"{sides.my_path(unit)} ({unit})" for unit in mine]
        kept = dict.fromkeys(_patterns(mine, sides.mine, sides.my_name))
        lines.insert(
            0,
            f"the source has no weights for {_some(found)}. To keep the values of `like`, write "
            f"`layers={kept}`",
        )
    if theirs:
        found = [f"{sides.their_path(unit)} ({unit})" for unit in theirs]
        left = _globs(theirs, sides)
        lines.append(
            f"`like` has no place for {_some(found)} of the source. If it is not needed, write "
            f"`unused={left}`"
        )
    return ". ".join(lines)


def _globs(units: list[Unit], sides: Sides) -> list[str]:
    """The paths of layers of the source, shorter by stars that cover no other layer."""
    found: dict[str, None] = {}
    for unit in units:
        pattern = re.sub(r"\d+", "*", sides.their_path(unit), count=1)
        covered = [u for u in sides.theirs if fnmatchcase(sides.their_path(u), pattern)]
        is_right = len(covered) > 1 and all(other in units for other in covered)
        found[pattern if is_right else sides.their_path(unit)] = None
    return list(found)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _not_there(argument: str, path: str, where: str, there: Iterator[str]) -> str:
    return f"{argument} has the path {path!r}, and {where} has {_some(list(there))}"
