"""Owner: matches the callbacks of a resumed run with the saved states."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePath
from typing import Any, cast

from solstice._plain import to_plain

_SCRIPT = {"__main__", "__mp_main__"}
"""Modules of a running script; the same class has another module when the script is imported."""


@dataclass(frozen=True)
class Owner:
    """The identity of a callback, saved with its state.

    Attributes:
        module, name: of its class.
        key: its `state_key`; a state with another key does not fit.
        hint: its `state_hint`, as checksums because a hint may contain secrets.
        places: the paths in its `state_hint`, separate because they change if a run is moved.
    """

    module: str
    name: str
    key: dict[str, Any]
    hint: dict[str, str]
    places: dict[str, str]

    @staticmethod
    def of(callback: Any) -> "Owner":
        """`Owner.of(callback)`."""
        kind = cast("Any", type(callback))
        key, hint = dict(callback.state_key()), dict(callback.state_hint())
        to_plain(key, f"{kind.__name__}.state_key()")  # raises if JSON cannot hold it
        places = {name: value for name, value in hint.items() if isinstance(value, PurePath)}
        others = {name: value for name, value in hint.items() if name not in places}
        return Owner(
            module=_public(kind.__module__),
            name=kind.__qualname__,
            key=key,
            hint={n: _checksum(v, f"{kind.__name__}.state_hint()") for n, v in others.items()},
            places={name: path.as_posix() for name, path in places.items()},
        )

    def __str__(self) -> str:
        """`solstice.callbacks.EarlyStopping(monitor='val/loss', mode='min')`."""
        about = ", ".join(
            f"{name}={value!r}" for name, value in {**self.key, **self.places}.items()
        )
        return f"{self.module}.{self.name}({about})"

    def fits(self, other: "Owner") -> bool:
        """Whether the state of one is valid for the other."""
        modules = {self.module, other.module}
        same_class = self.name == other.name and (len(modules) == 1 or bool(modules & _SCRIPT))
        return same_class and _checksum(self.key, "") == _checksum(other.key, "")

    def likeness(self, other: "Owner") -> float:
        """The similarity of the hints, for choosing among several that fit."""
        same = sum(other.hint.get(name) == value for name, value in self.hint.items())
        paths = self.places.keys() & other.places.keys()
        return same + sum(_shared(self.places[name], other.places[name]) for name in paths)

    def is_like(self, other: "Owner") -> bool:
        """Whether the two cannot be distinguished."""
        return self.fits(other) and (self.hint, self.places) == (other.hint, other.places)


def matched(saved: Mapping[str, Owner], now: Mapping[str, Owner]) -> dict[str, str]:
    """The name of the saved callback whose state each callback gets, by the callback's name.

    The most similar pairs come first; pairs of equal similarity keep their order.
    """
    # By class and place alone, two callbacks of one class would swap their states.
    pairs = [(one, other) for other in saved for one in now if saved[other].fits(now[one])]
    found: dict[str, str] = {}
    for one, other in sorted(pairs, key=lambda pair: -now[pair[0]].likeness(saved[pair[1]])):
        if one not in found and other not in found.values():
            found[one] = other
    return found


def uncounted(saved: Mapping[str, Owner], now: Mapping[str, Owner]) -> list[str]:
    """A line about each kind of indistinguishable callbacks whose number has changed."""
    found: dict[str, None] = {}
    for owner in now.values():
        before, after = (sum(owner.is_like(o) for o in those.values()) for those in (saved, now))
        if before not in (0, after):
            found[
                f"there were {before} of {owner}, and now there are {after}: they are matched in "
                f"order, since nothing distinguishes them; override `state_key`"
            ] = None
    return list(found)


def _public(module: str) -> str:
    """`solstice.callbacks` for `solstice.callbacks._early_stopping`: private modules may change."""
    return ".".join(takewhile(lambda part: not part.startswith("_"), module.split("."))) or module


def _checksum(value: Any, where: str) -> str:
    if isinstance(value, dict):
        # The order of settings is not a setting.
        value = sorted(cast("dict[str, Any]", value).items())
    return hashlib.sha256(repr(to_plain(value, where)).encode()).hexdigest()[:16]


def _shared(one: str, other: str) -> float:
    """The fraction of equal parts of two paths, from the last part backwards."""
    parts = PurePath(one).parts[::-1], PurePath(other).parts[::-1]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*parts, strict=False)))
    return same / max(*map(len, parts), 1)
