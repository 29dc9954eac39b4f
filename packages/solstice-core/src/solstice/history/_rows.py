"""Rows: the rows of a History, each made when somebody reads the list."""

from collections import deque
from collections.abc import Callable, Iterable
from threading import RLock
from typing import Any

from solstice.checkpoint import AppendOnly

_Row = dict[str, Any]


def _complete(name: str) -> Any:
    """A method of the list, called after all rows have been made."""
    method: Any = getattr(AppendOnly, name)

    def call(self: "Rows", *arguments: Any) -> Any:
        for rows in (self, *arguments):  # a list reads the memory of another list too
            if isinstance(rows, Rows):
                rows.complete()
        return method(self, *arguments)

    return call


class Rows(AppendOnly[_Row]):
    """`rows.add_later(make)`: a list of rows, of which the newest are made when they are read."""

    def __init__(self, rows: Iterable[_Row] = ()) -> None:
        super().__init__(rows)
        self._waiting: deque[Callable[[], _Row]] = deque()
        self._completing = RLock()  # a checkpoint is written by another thread

    def add_later(self, make: Callable[[], _Row]) -> None:
        """Adds a row at the end, which `make` returns. An error of it is raised at each read."""
        with self._completing:
            self._waiting.append(make)

    def complete(self) -> None:
        """Makes the rows that have not been read yet."""
        with self._completing:
            while self._waiting:
                super().append(self._waiting[0]())
                self._waiting.popleft()

    def __len__(self) -> int:
        with self._completing:
            return super().__len__() + len(self._waiting)

    def __radd__(self, other: list[_Row]) -> list[_Row]:
        return [*other, *self]  # because `list + rows` reads the memory of the list

    __getitem__ = _complete("__getitem__")
    __iter__ = _complete("__iter__")
    __reversed__ = _complete("__reversed__")
    __contains__ = _complete("__contains__")
    __eq__, __ne__ = _complete("__eq__"), _complete("__ne__")
    __repr__ = _complete("__repr__")
    __add__, __mul__, __rmul__ = _complete("__add__"), _complete("__mul__"), _complete("__rmul__")
    __iadd__ = _complete("__iadd__")
    append, extend = _complete("append"), _complete("extend")
    copy, count, index = _complete("copy"), _complete("count"), _complete("index")
    __hash__ = None  # pyright: ignore[reportAssignmentType]
