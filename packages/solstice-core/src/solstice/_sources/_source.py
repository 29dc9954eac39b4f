"""Source: a data set of any kind as batches of NumPy arrays, with a position that can be restored.

A `tf.data.Dataset`, a grain pipeline and a torch `DataLoader` need no special code: they are
iterables, and their tensors have `__array__`. Special rules of libraries are in `_libraries`.
"""

import copy
import types
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import jax

from solstice._batch import own
from solstice._sources import _libraries
from solstice._sources._arrays import to_numpy
from solstice._sources._identity import differences, identity_of
from solstice._sources._kinds import check_kind
from solstice._sources._positions import Memory, fingerprint, is_seekable, opened
from solstice._sources._reader import END, Reader, chain
from solstice._sources._shares import check_shares, identity_of_share
from solstice._types import Batch
from solstice.data import Batches

_ENDLESS = 2**62
"""Longer data sets are infinite: grain says 2**63 - 1 for a repeated data set."""


@dataclass(frozen=True)
class Seek:
    """The result of `Source.seek`.

    Attributes:
        how: the way in which the position was restored, in words.
        is_same: whether the batches before and after the position are those of the saved run, as
            far as they can be compared.
        changes: other differences from the saved run, in words.
    """

    how: str
    is_same: bool
    changes: list[str]


class Source:
    """A data set, opened once per epoch.

    Args:
        data: the user's data set.
        name: its argument, such as "train_ds", for messages.
        limit: the most batches per epoch, or None for all.

    Attributes:
        name, limit: the arguments.
        is_share: whether other processes have other examples.
    """

    def __init__(self, data: Any, name: str, limit: int | None = None) -> None:
        check_kind(data, name)
        self.name = name
        self.is_share = False
        self._data = data
        self.limit = limit
        self._reader = Reader(data, name, limit)
        self._returned: Generator[Batch, None, None] | None = None
        self._start = 0

    @property
    def length(self) -> int | None:
        """Batches in an epoch; None if that is unknown before its end."""
        try:
            length = len(self._data)
        except (TypeError, NotImplementedError):
            length = _ENDLESS
        if length >= _ENDLESS:
            return self.limit
        return length if self.limit is None else min(length, self.limit)

    @property
    def is_generator(self) -> bool:
        """Whether it is a generator, which cannot be read a second time."""
        return isinstance(self._data, types.GeneratorType)

    @property
    def is_iterator(self) -> bool:
        """Whether it is an iterator, whose batches may be gone once read."""
        return isinstance(self._data, Iterator)

    @property
    def arrays(self) -> Batches | None:
        """The data set, if it is arrays in memory."""
        return self._data if isinstance(self._data, Batches) else None

    @property
    def continues(self) -> str:
        """How exactly a run can resume within an epoch, in words."""
        if is_seekable(self._data):
            return "exactly, at once"
        return _libraries.resumes(self._data)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The identity of the data, computed only when a run is saved or resumed."""
        if self.is_share:  # the others have other data
            return {**identity_of_share(), "length": self.length}
        return {**identity_of(self._data), "length": self.length}

    def keep_states(self, count: int) -> None:
        """Keeps the states of the iterator, if it has any, for the `count` newest batches."""
        self._reader.kept_states = count

    def position(
        self,
        index: int,
        *,
        is_closed: bool,
        following: str | None = None,
        validation: "Source | None" = None,
    ) -> dict[str, Any]:
        """The position after `index` batches of an epoch, for `seek`.

        Args:
            index: the number of batches of the epoch that steps have used.
            is_closed: whether the epoch has ended.
            following: the fingerprint of the next batch, if it has been read already.
            validation: the validation set of the same `fit`, or None.
        """
        return {
            **self._state_at(index, is_closed),
            "next": following,
            "identity": self.identity,
            "validation": None if validation is None else validation.identity,
        }

    def _state_at(self, index: int, is_closed: bool) -> dict[str, Any]:
        """The state before the newest batch, because `seek` reads this again to compare it.

        If that state was not kept, the state after the batch; None if the next epoch needs none.
        """
        memory, states = self._reader.memory, self._reader.states
        if self.is_share:  # a checkpoint has the state of one process
            return {"state": None}
        at = next((i for i in (index - 1, index) if i in states), None)
        if memory is None or at is None or (is_closed and not memory.outlives_epochs):
            return {"state": None}
        return {"state": states[at], "behind": index - at, "kind": memory.kind}

    def seek(
        self,
        epoch: int,
        index: int,
        position: Mapping[str, Any],
        last: str | None,
        *,
        is_closed: bool = False,
        validation: "Source | None" = None,
    ) -> Seek:
        """Restores a position: the next read continues the epoch, or the next one if it is closed.

        Args:
            epoch: the saved epoch.
            index: the number of its batches that steps have used.
            position: the result of `position`.
            last: the fingerprint of the newest used batch, or None if there was none.
            is_closed: whether the epoch has ended.
            validation: the validation set of the same `fit`, or None.

        Raises:
            DataError: each process has a share of the data, and there were more or fewer.
        """
        check_shares(self.name, position.get("identity"), self.identity)
        if self.is_share and jax.process_index() > 0:  # the fingerprints are of process 0
            last, position = None, {**position, "next": None}
        changes = self._changes(position, validation)
        # In the order of their cost: the last reads all earlier batches again.
        how, read = (
            self._by_state(epoch, index, position, changes, is_closed)
            or self._by_index(epoch, index, is_closed)
            or self._by_reading(epoch, index, is_closed)
        )
        is_same = read is None or self._is_same(read, last)
        if not is_closed and position.get("next") is not None:
            is_same = self._goes_on_with(position["next"]) and is_same
        exactly = "exactly, " if is_same and not changes else ""
        return Seek(f"{exactly}{how}", is_same, changes)

    def _by_state(
        self,
        epoch: int,
        index: int,
        position: Mapping[str, Any],
        changes: list[str],
        is_closed: bool,
    ) -> tuple[str, Any] | None:
        """Restores the saved state of the iterator; None if there is none, or it is refused."""
        if position.get("state") is None:
            return None
        refused = self._give_state(epoch, index, position)
        if refused is not None:
            kind = position["kind"]
            changes.append(f"the place in {self.name} is the state of a {kind}, and {refused}")
            return None
        read = self._skip(position["behind"])
        if is_closed:
            self._reopen(epoch + 1)
        return "by the state of its iterator", read

    def _give_state(self, epoch: int, index: int, position: Mapping[str, Any]) -> str | None:
        """Opens an epoch at a saved state; returns the reason if that fails, in words."""
        reader = self._reader
        reader.first(0)  # because `reader.memory` is known only after a read
        if reader.memory is None:
            return "the data set that is given now takes no state"
        if reader.memory.kind != position["kind"]:
            return f"the iterator is a {reader.memory.kind} now"
        reader.forget()
        made = reader.make(epoch)
        batches, memory = opened(made)
        try:
            cast("Memory", memory).set(position["state"])
        except Exception as error:  # any error of the iterator
            return f"the iterator refuses it now: {error!r:.200}"
        self._returned = reader.read(made, batches, memory, index - position["behind"])
        return None

    def _by_index(self, epoch: int, index: int, is_closed: bool) -> tuple[str, Any] | None:
        """Continues at a batch found by its index; None if the data set is not seekable."""
        epochs = self._reader.epochs
        data = epochs(epoch) if epochs.decide else self._data
        if not is_seekable(data):
            return None
        read = None if index == 0 else data[index - 1] if index <= len(data) else END
        if is_closed:
            self._reopen(epoch + 1)
        else:
            self._reopen(epoch, index)
        return "at once", read

    def _by_reading(self, epoch: int, index: int, is_closed: bool) -> tuple[str, Any]:
        """Reads the earlier batches again: of all epochs, or of this one if epochs decide."""
        if is_closed:
            epoch, index = epoch + 1, 0
        count, read = index, None
        for earlier in range(0 if self._reader.epochs.decide else epoch):
            for batch in self.epoch(earlier):
                count, read = count + 1, batch
        self._returned = self.epoch(epoch)
        read = self._skip(index) if index else read
        return f"by reading {count:,} batches again", read

    def _skip(self, count: int) -> Batch:
        """Reads `count` batches; returns the last, `END` if there are fewer, None if 0."""
        read: Batch = None
        for _ in range(count):
            read = next(cast("Iterator[Batch]", self._returned), END)
            if read is END:
                break
        return read

    def _reopen(self, epoch: int, start: int = 0) -> None:
        self._reader.forget()
        self._returned, self._start = self._reader.open(epoch, start), start

    def _goes_on_with(self, expected: str) -> bool:
        """Whether the next batch has this fingerprint."""
        return self._is_same(self._peeked(), expected)

    def _peeked(self) -> Any:
        """The next batch, which is still yielded later; `END` if there is none."""
        rest = self._returned
        batch: Any = END if rest is None else own(next(rest, END))  # its memory may be reused
        if rest is not None and batch is not END:
            self._returned = chain(batch, rest)
        return batch

    def _changes(self, position: Mapping[str, Any], now: "Source | None") -> list[str]:
        """The differences from the saved run, in words; `now` is the validation set."""
        was, val = position.get("identity"), position.get("validation")
        found = [] if was is None else self._unlike(was, "an epoch")
        if val is None:
            return found
        if now is None:
            return [*found, "there was a validation set, and there is none"]
        if now.is_iterator and now.limit is not None:
            found.append(f"{now.name} is an iterator, and starts from its first batch again")
        return [*found, *now._unlike(val, now.name)]

    def _unlike(self, was: Mapping[str, Any], what: str) -> list[str]:
        old, new = was.get("length"), self.length
        found = differences(self.name, was, self.identity)
        if old is None or new is None or old == new:
            return found
        return [f"{what} had {old:,} batches, and has {new:,}", *found]

    def is_at_end(self) -> bool:
        """Whether the restored epoch has no batch left."""
        is_end = self._peeked() is END
        if is_end:
            self._returned = None
        return is_end

    def _is_same(self, batch: object, expected: str | None) -> bool:
        if batch is END:
            return False
        return expected is None or fingerprint(to_numpy(batch, self.name)) == expected

    def first(self, number: int = 0) -> Batch:
        """The first batch of an epoch; the epoch still yields it later."""
        return self._reader.first(number)

    def epoch(self, number: int) -> Generator[Batch, None, None]:
        """The batches of one epoch. Raises a DataError if there are none."""
        if self._returned is None:
            return self._reader.epoch(number)
        batches, self._returned = self._returned, None
        return batches

    def rows(self, number: int) -> tuple[Batches, int]:
        """One epoch of a data set on the device, and the index of the first batch to read."""
        data, start = cast("Batches", self._data), 0
        if self._returned is not None:  # after a `seek`
            self._returned, start = None, self._start
        self._reader.forget()
        data.set_epoch(number)
        return copy.copy(data), start  # because `set_epoch` must not change a pass in progress

    def end_epoch(self, number: int) -> None:
        """Called when an epoch has been read to its end, and trained."""
        self._reader.epochs.end(number)
