"""Reader: reads a data set epoch by epoch, and keeps the newest states of its iterator."""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from solstice._batch import own
from solstice._errors import DataError
from solstice._sources._arrays import to_numpy
from solstice._sources._epochs import Epochs
from solstice._sources._kinds import describe
from solstice._sources._positions import Memory, is_seekable, opened
from solstice._types import Batch
from solstice.data import Batches

END: Any = object()
"""Returned in place of a batch at the end of the data."""


@dataclass(frozen=True)
class _Peeked:
    """The first batch of an epoch, already read, and the others."""

    epoch: int
    first: Batch
    rest: Generator[Batch, None, None]


class Reader:
    """Reads a data set epoch by epoch, and keeps the newest states of its iterator.

    Args:
        data: the user's data set.
        name: its argument, such as "train_ds", for messages.
        limit: the most batches per epoch, or None for all.

    Attributes:
        epochs: makes the batches of an epoch.
        memory: the state of the newest epoch's iterator; None if it has no state.
        states: the newest states, by the number of batches read.
        kept_states: the number of states to keep.
    """

    def __init__(self, data: object, name: str, limit: int | None) -> None:
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
        """The first batch of an epoch; the epoch still yields it later."""
        self._forget_other_epochs(number)
        if self._peeked is None:
            batches = self.open(number)
            # A copy, because the data set may reuse its memory for the next batch.
            self._peeked = _Peeked(number, own(next(batches)), batches)
        return self._peeked.first

    def epoch(self, number: int) -> Generator[Batch, None, None]:
        """The batches of one epoch. Raises a DataError if there are none."""
        self._forget_other_epochs(number)
        if self._peeked is None:
            return self.open(number)
        peeked, self._peeked = self._peeked, None
        return chain(peeked.first, peeked.rest)

    def forget(self) -> None:
        """Drops the batch that `first` has read."""
        if self._peeked is not None:
            self._peeked.rest.close()
            self._peeked = None

    def _forget_other_epochs(self, number: int) -> None:
        """Drops a batch that `first` has read for another epoch, if epochs differ."""
        peeked = self._peeked
        if peeked is not None and peeked.epoch != number and self.epochs.differ:
            self.forget()

    def open(self, number: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch from number `start` on, which is 0 if it is not seekable."""
        try:
            made = self.make(number)
            batches, memory = opened(made, start)
        except Exception as error:
            self._blame(error, f"as epoch {number} was opened")
            raise
        yield from self.read(made, batches, memory, start)

    def make(self, number: int) -> Any:
        """The data set of an epoch.

        Raises:
            DataError: the user's function returned something else.
        """
        made = self.epochs(number)
        self._check_residence(made)
        if not isinstance(made, Iterable) and not is_seekable(made):
            raise DataError(
                f"{self._name} is a function that returned {made!r:.60}; it must return an "
                f"iterable of batches"
            )
        self._opened += 1
        self.states.clear()  # they are of another epoch
        return cast("Any", made)

    def _check_residence(self, made: object) -> None:
        """Refuses data for the device that a function makes, because each call makes other data."""
        if made is not self._data and isinstance(made, Batches) and made.on_device:
            raise DataError(
                f"{self._name} is a function that returned batches with on_device=True, which "
                f"would go to the device again in each epoch: pass the batches themselves, "
                f"`{self._name}=solstice.data.batches(..., on_device=True)`, or leave on_device out"
            )

    def read(
        self, made: object, batches: Iterator[Batch], memory: Memory | None, start: int
    ) -> Generator[Batch, None, None]:
        """The batches of an iterator whose first batch is number `start` of the epoch."""
        self.memory = memory
        index = start
        while index != self._limit:
            batch = self._next(batches, index)
            if batch is END:
                break
            index += 1
            if self.kept_states and memory is not None:
                # By number, because batches are read ahead of the steps.
                self.states[index] = memory.get()
                self.states.pop(index - self.kept_states - 1, None)
            yield to_numpy(batch, self._name)
        if index == 0:
            raise DataError(self._why_empty(made))

    def _next(self, batches: Iterator[Batch], index: int) -> Batch:
        try:
            return next(batches, END)
        except Exception as error:
            self._blame(error, f"as batch {index} of an epoch, counted from 0, was read")
            raise

    def _blame(self, error: Exception, when: str) -> None:
        """Adds a note to an error of the data set, because its traceback is deep in a run."""
        if not isinstance(error, DataError):
            error.add_note(f"{self._name} raised this {when}")

    def _why_empty(self, made: Any) -> str:
        if self._opened > 1 and made is self._data and iter(made) is made:
            return (
                f"{self._name} is a one-shot iterator: it gave no batch when it was read again "
                f"(pass {self._opened}). Pass a function that makes a new one for each epoch: "
                f"`{self._name}=lambda: my_generator()`, a list, or a data set that can be "
                f"iterated again"
            )
        if made is self._data and isinstance(made, Iterator):
            return (
                f"{self._name} is empty: it gave no batch. It is an iterator, and may have been "
                f"read before; pass a function that makes a new one, such as the generator "
                f"function without the call, or a list"
            )
        return f"{self._name} is empty: it gave no batch ({describe(self._data)})"


def chain(first: Batch, rest: Iterator[Batch]) -> Generator[Batch, None, None]:
    """A batch, followed by the others."""
    yield first
    yield from rest
