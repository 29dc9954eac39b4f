"""Which callback of a resumed run takes up the memory of which of the saved run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePath
from typing import Any, cast

from solstice._plain import to_plain

_SCRIPT = {"__main__", "__mp_main__"}
"""What a script defines is in `__main__` while it runs, and in its module when it is imported."""


@dataclass(frozen=True)
class Owner:
    """Who a callback is.

    Attributes:
        module, name: of its class.
        key: its `state_key`; the memory of another key is of no use to it.
        hint: checksums of its `state_hint`, which may have secrets in it.
        places: the paths in its `state_hint`, which change when a run is moved.
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
        to_plain(key, f"{kind.__name__}.state_key()")  # raises what is to be raised
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
        """Whether the memory of one is of use to the other."""
        modules = {self.module, other.module}
        same_class = self.name == other.name and (len(modules) == 1 or bool(modules & _SCRIPT))
        return same_class and _checksum(self.key, "") == _checksum(other.key, "")

    def likeness(self, other: "Owner") -> float:
        """How much of what tells them apart agrees."""
        same = sum(other.hint.get(name) == value for name, value in self.hint.items())
        paths = self.places.keys() & other.places.keys()
        return same + sum(_shared(self.places[name], other.places[name]) for name in paths)

    def is_like(self, other: "Owner") -> bool:
        """Whether nothing tells them apart."""
        return self.fits(other) and (self.hint, self.places) == (other.hint, other.places)


def matched(saved: Mapping[str, Owner], now: Mapping[str, Owner]) -> dict[str, str]:
    """By the name of each callback now, that of the saved one whose memory it takes up.

    Those that are most alike first; where nothing tells them apart, in their order.
    """
    pairs = [(one, other) for other in saved for one in now if saved[other].fits(now[one])]
    found: dict[str, str] = {}
    for one, other in sorted(pairs, key=lambda pair: -now[pair[0]].likeness(saved[pair[1]])):
        if one not in found and other not in found.values():
            found[one] = other
    return found


def uncounted(saved: Mapping[str, Owner], now: Mapping[str, Owner]) -> list[str]:
    """Of which that nothing tells apart there are more or fewer than there were."""
    found: dict[str, None] = {}
    for owner in now.values():
        before, after = (sum(owner.is_like(o) for o in those.values()) for those in (saved, now))
        if before not in (0, after):
            found[
                f"there were {before} of {owner}, and now there are {after}: they are matched in "
                f"order, since nothing tells them apart; override `state_key`"
            ] = None
    return list(found)


def _public(module: str) -> str:
    """`solstice.callbacks` for `solstice.callbacks._early_stopping`: where it is may change."""
    return ".".join(takewhile(lambda part: not part.startswith("_"), module.split("."))) or module


def _checksum(value: Any, where: str) -> str:
    if isinstance(value, dict):
        value = sorted(cast("dict[str, Any]", value).items())
    return hashlib.sha256(repr(to_plain(value, where)).encode()).hexdigest()[:16]


def _shared(one: str, other: str) -> float:
    """The share of the parts of two paths that agree, from the last on."""
    parts = PurePath(one).parts[::-1], PurePath(other).parts[::-1]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*parts, strict=False)))
    return same / max(*map(len, parts), 1)
