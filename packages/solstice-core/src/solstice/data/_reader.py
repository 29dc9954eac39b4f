"""Reads a data set epoch by epoch."""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from solstice._errors import DataError
from solstice._types import Batch
from solstice.data._arrays import own, to_numpy
from solstice.data._epochs import Epochs
from solstice.data._kinds import describe
from solstice.data._positions import Memory, is_seekable, opened

END: Any = object()
"""In place of a batch: there is none."""


@dataclass(frozen=True)
class _Peeked:
    """The first batch of an epoch, and those after it."""

    epoch: int
    first: Batch
    rest: Generator[Batch, None, None]


class Reader:
    """Reads a data set epoch by epoch, and remembers the states of its iterator.

    Args:
        data: what the user gave.
        name: what the user calls it ("train_ds"), for messages.
        limit: batches to take in an epoch at the most, or None for all.

    Attributes:
        epochs: what gives the batches of an epoch.
        memory: what knows where the epoch that was begun last stands, or None.
        states: what it remembered, by the count of batches, of the newest.
        kept_states: of how many batches.
    """

    def __init__(self, data: Any, name: str, limit: int | None) -> None:
        self._data = data
        self._name = name
        self._limit = limit
        self.epochs = Epochs(data, name)
        self.memory: Memory | None = None
        self.states: dict[int, Any] = {}
        self.kept_states = 0
        self._opened = 0
        self._peeked: _Peeked | None = None

    def first(self, number: int) -> Batch:
        """The first batch of an epoch, which that epoch will still give."""
        self._forget_other_epochs(number)
        if self._peeked is None:
            batches = self.open(number)
            self._peeked = _Peeked(number, own(next(batches)), batches)
        return self._peeked.first

    def epoch(self, number: int) -> Generator[Batch, None, None]:
        """The batches of one epoch. Raises DataError if there are none."""
        self._forget_other_epochs(number)
        if self._peeked is None:
            return self.open(number)
        peeked, self._peeked = self._peeked, None
        return chain(peeked.first, peeked.rest)

    def forget(self) -> None:
        """What `first` has read is not given again."""
        if self._peeked is not None:
            self._peeked.rest.close()
            self._peeked = None

    def _forget_other_epochs(self, number: int) -> None:
        """Batches of a data set that depends on the epoch are given in theirs alone."""
        peeked = self._peeked
        if peeked is not None and peeked.epoch != number and self.epochs.differ:
            self.forget()

    def open(self, number: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch from one on; of what is not seekable, from the first."""
        try:
            made = self.make(number)
            batches, memory = opened(made, start)
        except Exception as error:
            self._blame(error, f"as epoch {number} was opened")
            raise
        yield from self.read(made, batches, memory, start)

    def make(self, number: int) -> Any:
        """What gives the batches of an epoch."""
        made = self.epochs(number)
        if not isinstance(made, Iterable) and not is_seekable(made):
            raise DataError(
                f"{self._name} is a function that gave {made!r:.60}; it must give an iterable of "
                f"batches"
            )
        self._opened += 1
        self.states.clear()
        return cast("Any", made)

    def read(
        self, made: Any, batches: Iterator[Batch], memory: Memory | None, start: int
    ) -> Generator[Batch, None, None]:
        """The batches, of which the first is number `start` of what was made for an epoch."""
        self.memory = memory
        index = start
        while index != self._limit:
            batch = self._next(batches, index)
            if batch is END:
                break
            index += 1
            if self.kept_states and memory is not None:
                self.states[index] = memory.get()
                self.states.pop(index - self.kept_states - 1, None)
            yield to_numpy(batch, self._name)
        if index == 0:
            raise DataError(self._why_empty(made))

    def _next(self, batches: Iterator[Batch], index: int) -> Any:
        try:
            return next(batches, END)
        except Exception as error:
            self._blame(error, f"as batch {index} of an epoch, counted from 0, was read")
            raise

    def _blame(self, error: Exception, when: str) -> None:
        """Says whose error it is: it comes out of a run, and is the data set's own."""
        if not isinstance(error, DataError):
            error.add_note(f"{self._name} raised this {when}")

    def _why_empty(self, made: Any) -> str:
        if self._opened > 1 and made is self._data and iter(made) is made:
            return (
                f"{self._name} is a one-shot iterator: it gave no batch when it was read again "
                f"(pass {self._opened}). Give what makes a new one for each epoch instead: "
                f"`{self._name}=lambda: my_generator()`, a list, or a data set that can be "
                f"iterated again"
            )
        if made is self._data and isinstance(made, Iterator):
            return (
                f"{self._name} is empty: it gave no batch. It is an iterator, and may have been "
                f"read before; give what makes a new one instead, such as the generator function "
                f"without the call, or a list"
            )
        return f"{self._name} is empty: it gave no batch ({describe(self._data)})"


def chain(first: Batch, rest: Iterator[Batch]) -> Generator[Batch, None, None]:
    """A batch, and those after it."""
    yield first
    yield from rest
