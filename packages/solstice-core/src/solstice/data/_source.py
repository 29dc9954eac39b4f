"""What a data set may be: each kind becomes batches of NumPy arrays, epoch by epoch.

A `tf.data.Dataset`, a grain pipeline and a torch `DataLoader` are iterables whose leaves offer
`__array__`, and are used as such. What a library needs beyond that is in `_libraries`.
"""

import inspect
import itertools
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import equinox as eqx
import jax
import numpy as np

from solstice import _tree
from solstice._errors import DataError
from solstice._types import Batch
from solstice.data import _libraries
from solstice.data._batches import Batches
from solstice.data._masked import Masked
from solstice.data._positions import fingerprint, is_seekable, opened

_READY: Any = np.ndarray | jax.Array | str | bytes
_ENDLESS = 2**62
"""A longer length means that there is no end: grain says 2**63 - 1 of a repeated data set."""


_END = object()


@dataclass(frozen=True)
class Return:
    """How a data set has been taken up again.

    Attributes:
        how: in words.
        is_same: whether the batch before was the one of the saved run, where that can be seen.
    """

    how: str
    is_same: bool


class Source:
    """A data set, opened once for each epoch.

    Args:
        data: what the user gave.
        name: what the user calls it ("train_ds"), for messages.
        limit: batches to take in an epoch at the most, or None for all.
    """

    def __init__(self, data: Any, name: str, limit: int | None = None) -> None:
        self.name = name
        self._data = data
        self.limit = limit
        self._opened = 0
        self._peeked: tuple[Batch, Generator[Batch, None, None]] | None = None
        self._make, self._by_epoch = _maker(data, name)
        self._returned: Generator[Batch, None, None] | None = None
        self._states: dict[int, Any] = {}
        self._kept_states = 0

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
    def continues(self) -> str:
        """How exactly a run that ended within an epoch could go on, in words."""
        if is_seekable(self._data):
            return "exactly, at once"
        return _libraries.resumes(self._data)

    def keep_states(self, count: int) -> None:
        """From now on, the states of an iterator that has some are kept of the newest batches."""
        self._kept_states = count

    def stand(self, index: int, *, is_closed: bool) -> dict[str, Any]:
        """Where the data set stands after `index` batches of an epoch, for `go_to`."""
        state = self._states.get(index)
        return {"state": None if state is None or (is_closed and not state[1]) else state[0]}

    def go_to(
        self,
        epoch: int,
        index: int,
        stand: Mapping[str, Any],
        last: str | None,
        *,
        is_closed: bool = False,
    ) -> "Return":
        """The next epoch read is this one from batch `index` on, or if it is closed the next.

        Args:
            epoch: the epoch.
            index: batches of it that have been used.
            stand: what `stand` gave.
            last: the fingerprint of the batch before, or None if there was none.
            is_closed: whether the epoch has ended.
        """
        state = stand.get("state")
        data = self._made(epoch) if self._by_epoch else self._data
        if state is not None or is_seekable(data):
            self._drop_peeked()
            is_same = state is not None or not index or self._is_at(data, index - 1, last)
            start = (epoch + 1, 0) if is_closed else (epoch, index)
            self._returned = self._open(*start, state)
            how = "at once" if state is None else "by the state of its iterator"
            return Return(f"exactly, {how}", is_same)
        if is_closed:
            epoch, index = epoch + 1, 0
        count, batch = 0, None
        for earlier in range(0 if self._by_epoch else epoch):
            for read in self.epoch(earlier):
                batch, count = read, count + 1
        if epoch and self._by_epoch:
            self._drop_peeked()
        self._returned = self.epoch(epoch)
        for read in itertools.islice(self._returned, index):
            batch, count = read, count + 1
        told = f"exactly, by reading {count:,} batches again"
        return Return(told, batch is None or self._is_same(batch, last))

    def is_at_end(self) -> bool:
        """Whether the epoch that was taken up again has no batch left."""
        first = next(self._returned, None) if self._returned is not None else None
        if first is None or self._returned is None:
            self._returned = None
            return True
        self._returned = _chain(first, self._returned)
        return False

    def _is_at(self, data: Any, index: int, last: str | None) -> bool:
        return index < len(data) and self._is_same(data[index], last)

    def _is_same(self, batch: Batch, last: str | None) -> bool:
        return last is None or fingerprint(to_numpy(batch, self.name)) == last

    def _drop_peeked(self) -> None:
        if self._peeked is not None:
            self._peeked[1].close()
            self._peeked = None

    def first(self) -> Batch:
        """The first batch of the next epoch, which that epoch will still give."""
        if self._peeked is None:
            batches = self._open(self._opened)
            self._peeked = next(batches), batches
        return self._peeked[0]

    def epoch(self, number: int) -> Generator[Batch, None, None]:
        """The batches of one epoch. Raises DataError if there are none."""
        if self._returned is not None:
            batches, self._returned = self._returned, None
            return batches
        if self._peeked is None:
            return self._open(number)
        first, rest = self._peeked
        self._peeked = None
        return _chain(first, rest)

    def _open(self, number: int, start: int = 0, state: Any = None) -> Generator[Batch, None, None]:
        made = self._made(number)
        if not isinstance(made, Iterable) and not is_seekable(made):
            raise DataError(
                f"{self.name} is a function that gave {made!r:.60}; it must give an iterable of "
                f"batches"
            )
        self._opened += 1
        self._states.clear()
        batches, memory = opened(made, start, state)
        index = start
        while index != self.limit:
            batch = next(batches, _END)
            if batch is _END:
                break
            index += 1
            if self._kept_states and memory is not None:
                self._states[index] = memory.get(), memory.outlives_epochs
                self._states.pop(index - self._kept_states, None)
            yield to_numpy(batch, self.name)
        if index == 0:
            raise DataError(self._why_empty(made))

    def _made(self, number: int) -> Any:
        """What gives the batches of an epoch."""
        set_epoch = getattr(self._data, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(number)
        return self._make(number)

    def _why_empty(self, made: Any) -> str:
        if self._opened > 1 and made is self._data and iter(made) is made:
            return (
                f"{self.name} is a one-shot iterator: it gave no batch when it was read again "
                f"(pass {self._opened}). Give what makes a new one for each epoch instead: "
                f"`{self.name}=lambda: my_generator()`, a list, or a data set that can be iterated "
                f"again"
            )
        if made is self._data and isinstance(made, Iterator):
            return (
                f"{self.name} is empty: it gave no batch. It is an iterator, and may have been "
                f"read before; give what makes a new one instead, such as the generator function "
                f"without the call, or a list"
            )
        return f"{self.name} is empty: it gave no batch ({_describe(self._data)})"


def _chain(first: Batch, rest: Iterator[Batch]) -> Generator[Batch, None, None]:
    yield first
    yield from rest


def open_source(
    data: Any,
    name: str,
    batch_size: int | None = None,
    *,
    shuffle: bool = False,
    limit: int | None = None,
) -> Source:
    """A Source of what the user gave; arrays with a `batch_size` are cut into batches."""
    if batch_size is not None:
        batched = _libraries.in_batches(data, batch_size, shuffle=shuffle)
        if batched is not None:
            return Source(batched, name, limit)
        if isinstance(data, list) and not all(_is_array(part) for part in cast("list[Any]", data)):
            raise DataError(
                f"batch_size={batch_size} was given, and {name} is a list of batches that "
                f"are ready: leave batch_size out. Arrays to be cut into batches go "
                f"into a tuple or a dict: `{name}=(x, y)`"
            )
        if not _is_tree_of_arrays(data):
            raise DataError(
                f"batch_size={batch_size} was given, and {name} is no tree of arrays but "
                f"{_describe(data)}; leave batch_size out for data that come in batches"
            )
        data = Batches(data, batch_size, shuffle=shuffle)
    elif _is_examples(data):
        order = ", shuffle=True" if shuffle else ""  # predictions would not match their examples
        raise DataError(
            f"{name} is {_describe(data)}: examples, not batches. Say how many make a batch: "
            f"`batch_size=32`, or `{name}=solstice.data.batches({name}, 32{order})`. "
            f"Batches that are ready go into a list"
        )
    else:
        hint = _libraries.how_to_batch(data, name)
        if hint is not None:
            raise DataError(f"{name} is {_describe(data)}: examples, not batches. Write {hint}")
    return Source(data, name, limit)


def to_numpy(batch: Batch, name: str = "batch") -> Batch:
    """The batch with tensors of any library as NumPy arrays; JAX arrays and text stay."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, _READY):
            return leaf
        try:
            return np.asarray(leaf)
        except Exception as error:
            kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            raise DataError(f"a {kind} in a batch of {name} is no array: {error}") from error

    flat = isinstance(batch, tuple)  # as batches nearly always are
    leaves = cast("tuple[Any, ...]", batch) if flat else _tree.leaves(batch)
    if all(type(leaf) is np.ndarray for leaf in leaves):
        return batch  # as nearly always: nothing is made anew for each batch
    return jax.tree.map(convert, batch)


def describe_batch(batch: Batch) -> str:
    """`(f32[32,8,8], i32[32])`: the structure of a batch, for messages."""
    return eqx.tree_pformat(batch, short_arrays=True)


def _is_examples(data: Any) -> bool:
    """Whether it is arrays rather than batches: an array, a dict, or a tuple with an array in it.

    A list is a list of batches, and a tuple of tuples or dicts may be batches too.
    """
    if isinstance(data, tuple):
        return any(_is_array(child) for child in cast("tuple[Any, ...]", data))
    if isinstance(data, Masked):
        return True
    return isinstance(data, Mapping) or _is_array(data)


def _is_tree_of_arrays(data: Any) -> bool:
    if not (isinstance(data, tuple | list | Mapping | Masked) or _is_array(data)):
        return False
    leaves = _tree.leaves(data)
    return bool(leaves) and all(_is_array(leaf) for leaf in leaves)


def _is_array(data: Any) -> bool:
    """An array of NumPy or JAX, or a tensor, that has a first axis."""
    attributes = ("shape", "dtype", "__array__")
    return all(hasattr(data, name) for name in attributes) and len(data.shape) > 0


def _maker(data: Any, name: str) -> tuple[Callable[[int], Any], bool]:
    """A function from the epoch's number to batches, and whether that number decides on them."""
    if isinstance(data, Iterable):
        batches: Any = data  # pyright: ignore[reportUnknownVariableType]
        return lambda epoch: batches, callable(getattr(batches, "set_epoch", None))
    if callable(data):
        function = cast("Callable[..., Iterable[Batch]]", data)
        wants_epoch = _required_parameters(function) > 0
        return lambda epoch: function(epoch) if wants_epoch else function(), wants_epoch
    if is_seekable(data):
        return lambda epoch: data, True
    raise DataError(
        f"{name} must be an iterable of batches (a list, a tf.data.Dataset, a DataLoader ...), a "
        f"function that makes one, or arrays with a batch_size; it is {_describe(data)}"
    )


def _required_parameters(function: Callable[..., Any]) -> int:
    parameters = inspect.signature(function).parameters.values()
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def _describe(data: Any) -> str:
    if _is_tree_of_arrays(data):
        return describe_batch(data)
    return f"a {type(data).__module__}.{type(data).__qualname__}".replace("builtins.", "")
