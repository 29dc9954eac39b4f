"""Warnings of ignored values, each named once per run."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from solstice._console import warn


class LeftOut:
    """Warns of each ignored value once."""

    def __init__(self) -> None:
        self._named: set[tuple[str, str]] = set()

    def name(
        self,
        things: Mapping[str, Any],
        before: str,
        after: str | Callable[[Mapping[str, Any]], str],
    ) -> None:
        """`left_out.name({"a": array}, "it leaves out", "Write ...")`: warn of the new ones.

        Args:
            things: the ignored values, by name.
            before: the text before the list of names.
            after: the advice, a sentence, or a function that makes it from the new values.
        """
        found = {name: described(thing) for name, thing in things.items()}
        # With its type, because a value of another type may need other advice.
        new = {name: text for name, text in found.items() if (name, text) not in self._named}
        if new:
            self._named |= {*new.items()}
            names = ", ".join(f"`{name}`, {text}" for name, text in new.items())
            advice = after if isinstance(after, str) else after({n: things[n] for n in new})
            warn(f"{before} {names}. {advice}", stacklevel=3)


def described(thing: Any) -> str:
    """A value as text: `float32[3]` for an array."""
    if hasattr(thing, "shape") and hasattr(thing, "dtype"):
        return f"{thing.dtype}{list(thing.shape)}"
    if thing is None:
        return "None"
    return f"{type(thing).__name__} {thing!r:.40}" if np.ndim(thing) == 0 else "a list"
