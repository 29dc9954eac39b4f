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

_TemplatePairs: TypeAlias = list[tuple[Template, Template]]
_Units: TypeAlias = Mapping[Template, list[Unit]]

_KINDS = frozenset(
    {
        *("dense", "linear", "lin", "fc", "proj", "projection", "kernel", "weight"),
        *("conv", "convolution", "d", "embed", "embedding", "emb", "layer"),
        *("norm", "bn", "ln", "gn", "batch", "batchnorm", "layernorm", "groupnorm", "rmsnorm"),
        *("self", "multi", "head"),
    }
)
"""Words that say what a layer is, which its shape says too."""

_SAME = {
    **dict.fromkeys(("q", "wq"), "query"),
    **dict.fromkeys(("k", "wk"), "key"),
    **dict.fromkeys(("v", "wv"), "value"),
    **dict.fromkeys(("o", "wo", "output"), "out"),
    **dict.fromkeys(("attn", "mha"), "attention"),
    **dict.fromkeys(("multiheadattention", "multiheaddotproductattention"), "attention"),
}


class Ambiguous(Exception):  # noqa: N818, the pairs and not the program are
    """Layers of one kind and shape cannot be distinguished: those to fill, and the sources."""

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


def _template_pairs(some: _Units, others: _Units) -> _TemplatePairs:
    found: _TemplatePairs = []
    for pair in (_by_whole, _by_own_words, _by_shared_words, _by_place, _by_nothing):
        rest = {each: some[each] for each in some if each not in [one for one, _ in found]}
        left = {each: others[each] for each in others if each not in [other for _, other in found]}
        is_last = len(rest) == len(left) == 1
        pairs = [*zip(rest, left, strict=True)] if is_last else pair(rest, left)
        found += [(one, other) for one, other in pairs if len(some[one]) == len(others[other])]
    return found


def _by_whole(mine: _Units, theirs: _Units) -> _TemplatePairs:
    return [(each, each) for each in mine if each in theirs]


def _by_own_words(mine: _Units, theirs: _Units) -> _TemplatePairs:
    """By the words that tell templates apart, without those that all share at either end."""
    return _equal(_clear(_own_words([*mine])), _clear(_own_words([*theirs])))


def _by_shared_words(mine: _Units, theirs: _Units) -> _TemplatePairs:
    """By the most words in common, if no other has as many, and no word speaks against it."""
    some, others = (_clear(_own_words([*side])) for side in (mine, theirs))
    scores = {
        (one, other): len({*words} & {*their_words})
        for one, words in some.items()
        for other, their_words in others.items()
    }
    best = {
        (one, other)
        for (one, other), score in scores.items()
        if score > 0 and ({*some[one]} <= {*others[other]} or {*some[one]} >= {*others[other]})
    }
    for pair, score in scores.items():
        rivals = [other for other in scores if (other[0] == pair[0]) != (other[1] == pair[1])]
        if any(scores[other] >= score for other in rivals):
            best.discard(pair)
    return sorted(best)


def _by_place(mine: _Units, theirs: _Units) -> _TemplatePairs:
    """One layer that is alone outside of the blocks, such as the first norm of a ResNet."""
    if _share_words([*mine], [*theirs]):
        return []
    alone = [
        [each for each, units in side.items() if len(units) == 1 and each.count("#") < 2]
        for side in (mine, theirs)
    ]
    inside = [
        each.count("#") >= 2 and len(units) > 1
        for side in (mine, theirs)
        for each, units in side.items()
    ]
    is_clear = [len(each) for each in alone] == [1, 1] and sum(inside) == len(inside) - 2
    return [(alone[0][0], alone[1][0])] if is_clear else []


def _by_nothing(mine: _Units, theirs: _Units) -> _TemplatePairs:
    """Nothing more, so that only the last one of each side can be paired."""
    del mine, theirs
    return []


def _clear(words: Mapping[Template, Template]) -> dict[Template, Template]:
    """The words that may tell a layer: not those of a module that other layers have too."""
    return {
        each: own
        for each, own in words.items()
        if own and not any(other[: len(own)] == own for other in words.values() if other != own)
    }


def _equal(mine: Mapping[Template, object], theirs: Mapping[Template, object]) -> _TemplatePairs:
    """The templates with equal values, if no other has this value."""
    counts = [Counter(each.values()) for each in (mine, theirs)]
    return [
        (one, other)
        for one, value in mine.items()
        for other in theirs
        if theirs[other] == value and counts[0][value] == counts[1][value] == 1
    ]


def _own_words(templates: list[Template]) -> dict[Template, Template]:
    words = {each: _telling(each) for each in templates}
    start = _shared(list(words.values()))
    stop = _shared([found[start:][::-1] for found in words.values()])
    return {each: tuple(found[start : len(found) - stop]) for each, found in words.items()}


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
