"""What a data set may be: each kind becomes batches of NumPy arrays, epoch by epoch.

A `tf.data.Dataset`, a grain pipeline and a torch `DataLoader` are iterables whose leaves offer
`__array__`, and are used as such. What a library needs beyond that is in `_libraries`.
"""

import types
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from solstice._arguments import whole
from solstice._errors import DataError
from solstice._schema import SchemaError
from solstice._types import Batch
from solstice.data import _libraries
from solstice.data._arrays import own, to_numpy
from solstice.data._batches import Batches
from solstice.data._identity import differences, identity_of
from solstice.data._kinds import check_kind, describe, is_array, is_examples, is_tree_of_arrays
from solstice.data._kinds import describe_batch as describe_batch
from solstice.data._positions import Memory, fingerprint, is_seekable, opened
from solstice.data._reader import END, Reader, chain
from solstice.data._several import check_single

_ENDLESS = 2**62
"""A longer length means that there is no end: grain says 2**63 - 1 of a repeated data set."""


@dataclass(frozen=True)
class Seek:
    """How a data set has been taken up again.

    Attributes:
        how: in words.
        is_same: whether the batches before and after the break are those of the saved run, where
            they can be seen.
        changes: what else is not as in the saved run, in words.
    """

    how: str
    is_same: bool
    changes: list[str]


@dataclass(frozen=True)
class Identity:
    """Which data a data set has, in a checkpoint."""

    length: int | None
    kind: str | None = None
    checksum: str | None = None
    describe: dict[str, int | bool] = field(default_factory=dict[str, int | bool])


@dataclass(frozen=True)
class SourcePosition:
    """Where a data set stands, in a checkpoint; see `Source.position`."""

    state: Any
    behind: int = 0
    kind: str = ""
    next: str | None = None
    identity: Identity | None = None
    validation: Identity | None = None

    def __post_init__(self) -> None:
        if self.behind > 1:
            raise SchemaError(f"note['run']['data']['behind'] must be 0 or 1; it is {self.behind}")
        if self.state is not None and not self.kind:
            raise SchemaError("note['run']['data'] has a state and no 'kind' of it")


class Source:
    """A data set, opened once for each epoch.

    Args:
        data: what the user gave.
        name: what the user calls it ("train_ds"), for messages.
        limit: batches to take in an epoch at the most, or None for all.

    Attributes:
        validation: the data set that is validated on beside this one, or None.
    """

    def __init__(self, data: Any, name: str, limit: int | None = None) -> None:
        check_kind(data, name)
        self.name = name
        self._data = data
        self.limit = limit
        self.validation: Source | None = None
        self._reader = Reader(data, name, limit)
        self._returned: Generator[Batch, None, None] | None = None

    @property
    def length(self) -> int | None:
        """Batches in an epoch, where that is known before it ends."""
        try:
            length = len(self._data)
        except (TypeError, NotImplementedError):
            length = _ENDLESS
        if length >= _ENDLESS:
            return self.limit
        return length if self.limit is None else min(length, self.limit)

    @property
    def is_generator(self) -> bool:
        """Whether it can certainly not be read a second time."""
        return isinstance(self._data, types.GeneratorType)

    @property
    def is_iterator(self) -> bool:
        """Whether what has been read of it may be gone."""
        return isinstance(self._data, Iterator)

    @property
    def continues(self) -> str:
        """How exactly a run that ended within an epoch could go on, in words."""
        if is_seekable(self._data):
            return "exactly, at once"
        return _libraries.resumes(self._data)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells this data set from others; worked out when a run is saved or resumed."""
        return {**identity_of(self._data), "length": self.length}

    def keep_states(self, count: int) -> None:
        """From now on, the states of an iterator that has some are kept of the newest batches."""
        self._reader.kept_states = count

    def position(
        self, index: int, *, is_closed: bool, following: Batch | None = None
    ) -> dict[str, Any]:
        """Where the data set stands after `index` batches of an epoch, for `seek`.

        Args:
            index: batches of the epoch that have been used.
            is_closed: whether the epoch has ended.
            following: the batch after those, where it has been read already.
        """
        return {
            **self._state_at(index, is_closed),
            "next": None if following is None else fingerprint(following),
            "identity": self.identity,
            "validation": None if self.validation is None else self.validation.identity,
        }

    def _state_at(self, index: int, is_closed: bool) -> dict[str, Any]:
        """The state before the newest batch, which is read again to see whether it is the same.

        It is the state after it where no other was kept, and none if the next epoch needs none.
        """
        memory, states = self._reader.memory, self._reader.states
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
    ) -> Seek:
        """The next epoch read is this one from batch `index` on, or if it is closed the next.

        Args:
            epoch: the epoch.
            index: batches of it that have been used.
            position: what `position` gave.
            last: the fingerprint of the batch before, or None if there was none.
            is_closed: whether the epoch has ended.
        """
        changes = self._changes(position)
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
        """Goes on by the saved state, if there is one that this data set takes."""
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
        """Opens an epoch at a state; else the reason why not, in words."""
        reader = self._reader
        reader.first(0)  # for its memory, where that has not been done
        if reader.memory is None:
            return "the data set that is given now takes no state"
        if reader.memory.kind != position["kind"]:
            return f"the iterator is a {reader.memory.kind} now"
        reader.forget()
        made = reader.make(epoch)
        batches, memory = opened(made)
        try:
            cast("Memory", memory).set(position["state"])
        except Exception as error:  # whatever the iterator raises
            return f"the iterator does not take it now: {error!r:.200}"
        self._returned = reader.read(made, batches, memory, index - position["behind"])
        return None

    def _by_index(self, epoch: int, index: int, is_closed: bool) -> tuple[str, Any] | None:
        """Goes on at once, where batches are found by their index."""
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
        """Reads again what comes before: of the epoch alone, if its number decides on it."""
        if is_closed:
            epoch, index = epoch + 1, 0
        count, read = index, None
        for earlier in range(0 if self._reader.epochs.decide else epoch):
            for batch in self.epoch(earlier):
                count, read = count + 1, batch
        self._returned = self.epoch(epoch)
        read = self._skip(index) if index else read
        return f"by reading {count:,} batches again", read

    def _skip(self, count: int) -> Any:
        """Reads so many batches: the last of them, None of none, or `END` if there are fewer."""
        read: Any = None
        for _ in range(count):
            read = next(cast("Iterator[Batch]", self._returned), END)
            if read is END:
                break
        return read

    def _reopen(self, epoch: int, start: int = 0) -> None:
        self._reader.forget()
        self._returned = self._reader.open(epoch, start)

    def _goes_on_with(self, expected: str) -> bool:
        """Whether the batch to come, which will still be given, has this fingerprint."""
        rest = cast("Generator[Batch, None, None]", self._returned)
        batch: Any = next(rest, END)
        if batch is END:
            return False
        batch = own(batch)
        self._returned = chain(batch, rest)
        return self._is_same(batch, expected)

    def _changes(self, position: Mapping[str, Any]) -> list[str]:
        """What is not as it was when a run was saved, in words."""
        was, val, now = position.get("identity"), position.get("validation"), self.validation
        found = [] if was is None else self._unlike(was, "an epoch")
        if val is None:
            return found
        if now is None:
            return [*found, "there was a validation set, and there is none"]
        if now.is_iterator and now.limit is not None:
            found.append(f"{now.name} is an iterator, and begins again")
        return [*found, *now._unlike(val, now.name)]

    def _unlike(self, was: Mapping[str, Any], what: str) -> list[str]:
        old, new = was.get("length"), self.length
        found = differences(self.name, was, self.identity)
        if old is None or new is None or old == new:
            return found
        return [f"{what} had {old:,} batches, and has {new:,}", *found]

    def is_at_end(self) -> bool:
        """Whether the epoch that was taken up again has no batch left."""
        first = next(self._returned, None) if self._returned is not None else None
        if first is None or self._returned is None:
            self._returned = None
            return True
        self._returned = chain(own(first), self._returned)
        return False

    def _is_same(self, batch: Any, expected: str | None) -> bool:
        if batch is END:
            return False
        return expected is None or fingerprint(to_numpy(batch, self.name)) == expected

    def first(self, number: int = 0) -> Batch:
        """The first batch of an epoch, which that epoch will still give."""
        return self._reader.first(number)

    def epoch(self, number: int) -> Generator[Batch, None, None]:
        """The batches of one epoch. Raises DataError if there are none."""
        if self._returned is None:
            return self._reader.epoch(number)
        batches, self._returned = self._returned, None
        return batches

    def end_epoch(self, number: int) -> None:
        """An epoch has been read to its end, and used."""
        self._reader.epochs.end(number)


def open_source(
    data: Any,
    name: str,
    batch_size: int | None = None,
    *,
    shuffle: bool = False,
    limit: int | None = None,
    like: Any = None,
) -> Source:
    """A Source of what the user gave; arrays with a `batch_size` are cut into batches."""
    check_single(data, name, batch_size, like)
    if batch_size is not None:
        batch_size = whole("batch_size", batch_size, 1, "examples", error=DataError)
        batched = _libraries.in_batches(data, batch_size, shuffle=shuffle)
        if batched is not None:
            return Source(batched, name, limit)
        if isinstance(data, list) and not all(is_array(part) for part in cast("list[Any]", data)):
            raise DataError(
                f"batch_size={batch_size} was given, and {name} is a list of batches that "
                f"are ready: leave batch_size out. Arrays to be cut into batches go "
                f"into a tuple or a dict: `{name}=(x, y)`"
            )
        if not is_tree_of_arrays(data):
            raise DataError(
                f"batch_size={batch_size} was given, and {name} is no tree of arrays but "
                f"{describe(data)}; leave batch_size out for data that come in batches"
            )
        data = Batches(data, batch_size, shuffle=shuffle)
    elif is_examples(data):
        order = ", shuffle=True" if shuffle else ""  # predictions would not match their examples
        raise DataError(
            f"{name} is {describe(data)}: examples, not batches. Say how many make a batch: "
            f"`batch_size=32`, or `{name}=solstice.data.batches({name}, 32{order})`. "
            f"Batches that are ready go into a list"
        )
    else:
        hint = _libraries.how_to_batch(data, name)
        if hint is not None:
            raise DataError(f"{name} is {describe(data)}: examples, not batches. Write {hint}")
    return Source(data, name, limit)
