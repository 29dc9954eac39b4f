"""The History of a Trainer, loaded with the first Trainer and not with `import solstice`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from solstice._callback import Callback

if TYPE_CHECKING:
    from solstice.history import History

_MAX_SIZE = 256
"""Largest array in the Trainer's own History, because each checkpoint stores the history."""


def own_history() -> "History":
    """The History of a Trainer without one among its callbacks."""
    from solstice.history import History

    return History(max_size=_MAX_SIZE)


def histories_in(callbacks: Iterable[Callback]) -> "list[History]":
    """Those of the callbacks that are a History."""
    from solstice.history import History

    return [callback for callback in callbacks if isinstance(callback, History)]
