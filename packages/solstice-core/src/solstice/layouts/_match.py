"""Pairs of layers of two nets: by kind and shape, then by the numbers and words of their paths."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from solstice.layouts._units import Unit

Pairs: TypeAlias = list[tuple[Unit, Unit]]
"""Of a unit of the net that gets weights, and the unit that has them."""

Template: TypeAlias = tuple[str, ...]
"""The words of a path, with "#" for each number."""

_KINDS = frozenset(
    {
        *("dense", "linear", "lin", "fc", "proj", "projection", "kernel", "weight"),
        *("conv", "convolution", "d", "embed", "embedding", "emb", "layer"),
        *("norm", "bn", "ln", "gn", "batch", "batchnorm", "layernorm", "groupnorm", "rmsnorm"),
        *("attention", "attn", "mha", "self"),
        *("multiheadattention", "multiheaddotproductattention"),
    }
)
"""Words that say what a layer is, which its shape says too."""

_SAME = {
    **dict.fromkeys(("q", "wq"), "query"),
    **dict.fromkeys(("k", "wk"), "key"),
    **dict.fromkeys(("v", "wv"), "value"),
    **dict.fromkeys(("o", "wo", "output"), "out"),
}


class Ambiguous(Exception):  # noqa: N818, the pairs and not the program are
    """Layers of one kind and shape cannot be told apart: those that get weights, and the others."""

    def __init__(self, mine: list[Unit], theirs: list[Unit]) -> None:
        super().__init__(mine, theirs)
        self.mine, self.theirs = mine, theirs


def matched(mine: list[Unit], theirs: list[Unit]) -> Pairs:
    """The pairs of layers of two nets; those of one net alone are in no pair.

    Raises:
        Ambiguous: there are several ways.
    """
    pairs: Pairs = []
    for some, others in _alike(mine, theirs):
        pairs += _paired(some, others)
    return pairs


def _alike(mine: list[Unit], theirs: list[Unit]) -> list[tuple[list[Unit], list[Unit]]]:
    """The layers in groups; one of a group has the kind and shapes of none in another."""
    groups: list[set[object]] = []
    for unit in [*mine, *theirs]:
        touched = [group for group in groups if group & unit.signatures]
        groups = [group for group in groups if not group & unit.signatures]
        groups.append(set(unit.signatures).union(*touched))
    both = [
        ([u for u in mine if u.signatures & group], [u for u in theirs if u.signatures & group])
        for group in groups
    ]
    return [(some, others) for some, others in both if some and others]


def _paired(mine: list[Unit], theirs: list[Unit]) -> Pairs:
    for pair in (_by_path, _by_template):
        pairs = pair(mine, theirs)
        if pairs and all(one.signatures & other.signatures for one, other in pairs):
            return pairs
    raise Ambiguous(mine, theirs)


def _by_path(mine: list[Unit], theirs: list[Unit]) -> Pairs:
    """By equal paths, if all are."""
    paths = {unit.path: unit for unit in theirs}
    if {unit.path for unit in mine} != set(paths):
        return []
    return [(unit, paths[unit.path]) for unit in mine]


def _by_template(mine: list[Unit], theirs: list[Unit]) -> Pairs:
    """By templates, and in the order of their numbers; [] if that leaves something open."""
    some, others = _templates(mine), _templates(theirs)
    pairs: Pairs = []
    for one, other in _template_pairs(some, others):
        pairs += zip(some[one], others[other], strict=True)
    return pairs if len(pairs) == len(mine) == len(theirs) else []


def _template_pairs(
    some: Mapping[Template, list[Unit]], others: Mapping[Template, list[Unit]]
) -> list[tuple[Template, Template]]:
    found: list[tuple[Template, Template]] = []
    for key in (_whole, _own_words, _last_word, _count):
        rest = [x for x in some if x not in [pair[0] for pair in found]]
        left = [x for x in others if x not in [pair[1] for pair in found]]
        if len(rest) == len(left) == 1:
            key = _only
        mine, theirs = key(rest, some), key(left, others)
        if key is _count and _share_words(rest, left):
            continue
        found += [
            (one, other)
            for one in rest
            for other in left
            if mine[one] == theirs[other]
            and Counter(mine.values())[mine[one]] == Counter(theirs.values())[mine[one]] == 1
            and len(some[one]) == len(others[other])
        ]
    return found


_Units: TypeAlias = Mapping[Template, list[Unit]]
_Keys: TypeAlias = Mapping[Template, object]


def _whole(templates: list[Template], units: _Units) -> _Keys:
    del units
    return {each: each for each in templates}


def _own_words(templates: list[Template], units: _Units) -> Mapping[Template, Template]:
    """The words that tell templates apart, without those that all of them share at either end."""
    del units
    words = {each: _telling(each) for each in templates}
    start = _shared(list(words.values()))
    stop = _shared([found[start:][::-1] for found in words.values()])
    return {each: tuple(found[start : len(found) - stop]) for each, found in words.items()}


def _last_word(templates: list[Template], units: _Units) -> _Keys:
    return {each: found[-1:] for each, found in _own_words(templates, units).items()}


def _count(templates: list[Template], units: _Units) -> _Keys:
    return {each: len(units[each]) for each in templates}


def _only(templates: list[Template], units: _Units) -> _Keys:
    del units
    return dict.fromkeys(templates)


def _share_words(mine: list[Template], theirs: list[Template]) -> bool:
    """Whether a word is on both sides, so that the numbers of layers do not decide."""
    words = [{word for each in side for word in _telling(each)} for side in (mine, theirs)]
    return bool(words[0] & words[1])


def _telling(template: Template) -> list[str]:
    return [_SAME.get(word, word) for word in template if word not in _KINDS and word != "#"]


def _shared(lists: list[list[str]]) -> int:
    """The number of first words that all lists share."""
    shortest = min(map(len, lists), default=0)
    same = (len({words[at] for words in lists}) == 1 for at in range(shortest))
    return next((at for at, is_same in enumerate(same) if not is_same), shortest)


def _templates(units: list[Unit]) -> dict[Template, list[Unit]]:
    """The units by template, each in the order of its numbers."""
    tokens = {unit: tokens_of(path) for unit, path in zip(units, numbered(units), strict=True)}
    found: dict[Template, list[Unit]] = {}
    for unit in sorted(units, key=lambda unit: [int(t) for t in tokens[unit] if t.isdigit()]):
        template = tuple("#" if token.isdigit() else token for token in tokens[unit])
        found.setdefault(template, []).append(unit)
    return found


def tokens_of(path: str) -> list[str]:
    """The words and numbers of a path: `["encoderblock", "3", "query"]`."""
    return re.findall(r"[a-z]+|\d+", path.lower())


def numbered(units: Iterable[Unit]) -> list[str]:
    """The paths, with a 0 where the first of several has no number: `linear`, `linear_1`."""
    paths = [unit.path for unit in units]
    there = {parts[: at + 1] for parts in map(_split, paths) for at in range(len(parts))}
    last = {parts: re.fullmatch(r"(.*\D)_\d+", parts[-1]) for parts in there}
    firsts = {(*parts[:-1], match[1]) for parts, match in last.items() if match}
    return ["/".join(_with_zeros(_split(path), firsts)) for path in paths]


def _split(path: str) -> tuple[str, ...]:
    return tuple(path.split("/"))


def _with_zeros(parts: tuple[str, ...], firsts: set[tuple[str, ...]]) -> list[str]:
    return [f"{part}_0" if parts[: at + 1] in firsts else part for at, part in enumerate(parts)]
