"""Batches: arrays in memory or in files, cut into batches."""

import copy
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np

from solstice import _tree
from solstice._arguments import check_alive, function, switch, switch_or_none, whole
from solstice._batch import unmasked
from solstice._errors import DataError
from solstice._memory import frozen_copy
from solstice._types import Batch
from solstice.data._order import Order
from solstice.data._residence import Residence, why_on_host
from solstice.data._stores import Store, store_of

_READS = ("__getitem__", "__iter__", "__len__", "set_epoch")
"""The methods on which the rows of a batch depend."""


class Batches:
    """`solstice.data.batches((images, labels), 32, shuffle=True, seed=0)`: batches of arrays.

    The order depends only on the seed and the epoch: each pass gives the batches of the epoch set
    by `set_epoch` (0 by default). The Trainer sets each epoch before it reads it. `data[17]` is
    batch 17, without reading the earlier ones, and an iterator's `state_dict()` is its position.

    Args:
        arrays: an array or a pytree of arrays (a tuple, a dict ...) of one length, with the
            examples along axis 0. NumPy arrays are not copied, except for the device. An array may
            be a mapped file or a store, any object with a length whose `store[3:7]` or
            `store[np.array([2, 5])]` are rows, such as an h5py dataset: each batch reads its rows.
        batch_size: examples per batch, 1 or more. The last batch may be smaller.
        shuffle: whether each epoch has another order.
        seed: a non-negative integer, the seed of the orders.
        drop_last: whether to leave out a smaller last batch.
        on_device: whether the Trainer puts all arrays on the device once, and compiled calls read
            the batches there. The bits are those of batches from the host. None puts them there if
            they take at most an eighth of the device's memory, or 64 MiB on the CPU, and are not
            stores. The arrays are copied now, so later changes of yours have no effect.

    Raises:
        DataError: there is no array, the lengths differ, `batch_size` is below 1, `seed` is not a
            non-negative integer, or arrays on the device are not numbers or do not fit there.
        ValueError: `shuffle` or `drop_last` is not True or False, or `on_device` not these or None.
    """

    def __init__(
        self,
        arrays: Batch,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        on_device: bool | None = False,
    ) -> None:
        self.batch_size = whole("batch_size", batch_size, 1, "examples", error=DataError)
        self.seed = whole("seed", seed, 0, error=DataError)
        self.drop_last = switch("drop_last", drop_last)
        shuffle = switch("shuffle", shuffle)
        leaves, self._treedef = _tree.flatten(arrays)
        self._leaves = [_as_array(leaf, self.batch_size) for leaf in leaves]
        lengths = [len(leaf) for leaf in self._leaves]
        if len(set(lengths)) != 1:
            raise DataError(
                f"arrays must be of one length on axis 0; the lengths are {lengths or 'none'}"
            )
        self._length = lengths[0]
        self._order = Order(self._length, self.seed) if shuffle else None
        self._residence = self._residence_for(switch_or_none("on_device", on_device))
        if self.is_resident:
            # A copy that nobody can change: steps read the device, callbacks and checks the host.
            self._leaves = [frozen_copy(leaf[:]) for leaf in self._leaves]
        self.epoch = 0
        self._part: Callable[[int], slice] | None = None

    @property
    def shuffle(self) -> bool:
        """`data.shuffle`: as given."""
        return self._order is not None

    @property
    def on_device(self) -> bool | None:
        """`data.on_device`: as given."""
        return self._residence.asked

    @property
    def is_resident(self) -> bool:
        """`data.is_resident`: whether the arrays go to the device."""
        return not self.why_on_host

    @property
    def why_on_host(self) -> str:
        """`data.why_on_host`: the reason why they do not; "" if they do."""
        return self._residence.why_on_host

    @property
    def arrays(self) -> Batch:
        """`data.arrays`: all examples, as NumPy arrays or stores of rows in the given tree."""
        return _tree.unflatten(self._treedef, self._leaves)

    @property
    def has_stores(self) -> bool:
        """`data.has_stores`: whether batches read their rows from a large file or a store."""
        return any(isinstance(leaf, Store) for leaf in self._leaves)

    def sample(self) -> Batch:
        """`data.sample()`: the arrays, with a few rows in place of all that a store has."""
        leaves = [leaf.sample() if isinstance(leaf, Store) else leaf for leaf in self._leaves]
        return _tree.unflatten(self._treedef, leaves)

    def only(self, part: Callable[[int], slice]) -> "Batches":
        """`data.only(lambda size: slice(0, size // 2))`: the first half of each batch.

        A process that needs some rows of each batch reads no others, from the host. The batches,
        their number and their order are the same for every part.

        Args:
            part: a function of the number of examples in a batch, which is smaller for the last
                one. It returns the range of those to read, a slice without a step.
        """
        partial = copy.copy(self)
        partial._residence = Residence(False, "it has a part of each batch")
        partial._part = function("part", part, "data.only(lambda size: slice(0, size // 2))")
        return partial

    def place(self, device: Any = None) -> Batch:
        """`arrays = data.place()`: the arrays on the device, put there by the first call.

        The Trainer calls it. Call it yourself to put them there before. The `Batches` object keeps
        them there as long as it lives.

        Args:
            device: the device; JAX's default device if None.

        Raises:
            DataError: the arrays do not fit in the memory of the device.
        """
        return self._residence.place(self.arrays, device, self.from_host())

    def from_host(self) -> str:
        """`data.from_host()`: the line that makes these batches on the host, for messages."""
        given = {"shuffle": self.shuffle, "seed": self.seed, "drop_last": self.drop_last}
        more = "".join(f", {name}={value}" for name, value in given.items() if value)
        return f"`solstice.data.batches(arrays, {self.batch_size}{more})`"

    def _residence_for(self, asked: bool | None) -> Residence:
        # The methods of a subclass may change batches.
        wrong = "" if type(self) is Batches else f"{type(self).__name__} is a class of its own"
        why = why_on_host(asked, self._leaves, wrong)
        if asked and why:
            raise DataError(
                f"batches with on_device=True need arrays of numbers, of fewer than 2**31 "
                f"examples, and a call reads them itself; {why}. Feed them from the host: "
                f"{self.from_host()}"
            )
        return Residence(asked, why)

    @property
    def num_examples(self) -> int:
        """`data.num_examples`: the examples in the arrays."""
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """`data.set_epoch(3)`: the next pass gives the order of epoch 3."""
        self.epoch = whole("epoch", epoch, 0)

    def __len__(self) -> int:
        full, rest = divmod(self._length, self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __getitem__(self, index: int) -> Batch:
        """`data[17]`: batch 17 of the epoch; a negative index counts from the end."""
        start, stop = self._span(index)
        order = self._order
        # A slice gives views of the arrays, and rows by number a copy.
        rows = slice(start, stop) if order is None else order.rows(self.epoch, start, stop)
        return _tree.unflatten(self._treedef, [leaf[rows] for leaf in self._leaves])

    def indices(self, epoch: int, batch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """`data.indices(epoch=3, batch=17)`: the rows of `arrays` that are in this batch, in order.

        `data.set_epoch(3)` and `data[17]` give these rows. Under `Trainer(limit_train_batches=...)`
        they are the same, because a limit only ends an epoch earlier. After `data.only(part)`, they
        are the rows of the part.

        Args:
            epoch: the epoch, from 0.
            batch: the batch of the epoch; a negative number counts from the end.

        Returns:
            int64 of shape [n], where n is the number of examples in the batch.

        Raises:
            ValueError: `epoch` is not a whole number of 0 or more.
            IndexError: there is no such batch.
            DataError: the class has batches of its own, and so must have its own `indices`.
        """
        epoch = whole("epoch", epoch, 0)
        if any(getattr(type(self), name) is not getattr(Batches, name) for name in _READS):
            kind = type(self).__name__
            raise DataError(
                f"{kind} gives batches of its own, and `indices` would not have their rows: write "
                f"`def indices(self, epoch, batch):` in {kind}"
            )
        start, stop = self._span(batch)
        order = self._order
        # A copy, because the rows of an epoch are remembered.
        return np.arange(start, stop) if order is None else order.rows(epoch, start, stop).copy()

    def _span(self, index: int) -> tuple[int, int]:
        """The positions, in the order of the epoch, of the examples of a batch."""
        try:
            index = operator.index(index)
        except TypeError as error:
            raise TypeError(
                f"batches are taken one at a time, as in `data[17]`; the index is {index!r:.40}. "
                f"For several write `[data[i] for i in range(3, 7)]`"
            ) from error
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        start = position * self.batch_size
        stop = min(start + self.batch_size, self._length)
        return (start, stop) if self._part is None else self._of_part(start, stop)

    def _of_part(self, start: int, stop: int) -> tuple[int, int]:
        """The range of the part of a batch, given that of the batch."""
        part = cast("Callable[[int], slice]", self._part)
        first, last, step = part(stop - start).indices(stop - start)
        if step != 1:
            raise DataError(f"a part of a batch must be a slice without a step; its step is {step}")
        return start + first, start + max(first, last)

    def __iter__(self) -> "BatchIterator":
        epoch = copy.copy(self)  # because `set_epoch` must not change a pass in progress
        return BatchIterator(epoch)

    @property
    def order(self) -> np.ndarray[Any, Any] | None:
        """`data.order`: the row of each example of the epoch; None without shuffling.

        It takes 8 bytes an example. Batches do not need it: they find their own rows.
        """
        return None if self._order is None else self._order.rows(self.epoch, 0, self._length)

    def describe(self) -> dict[str, Any]:
        """`data.describe()`: the settings on which the batches of an epoch depend, by name."""
        return {
            "examples": self._length,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "drop_last": self.drop_last,
        }

    def __repr__(self) -> str:
        more = {name: value for name, value in self.describe().items() if name != "examples"}
        more |= {"on_device": True} if self.is_resident else {}
        told = ", ".join(f"{name}={value}" for name, value in more.items())
        return f"Batches({self._length:,} examples, {told})"


class BatchIterator(Iterator[Batch]):
    """`iterator = iter(batches)`: one epoch, with a position that can be saved and restored.

    ```python
    state = iterator.state_dict()                    # plain numbers, for JSON
    iterator = iter(solstice.data.batches(...))      # later, in another process
    iterator.load_state_dict(state)                  # continues with the next batch, at once
    ```
    """

    def __init__(self, data: Batches) -> None:
        self._data = data
        self._index = 0

    def __next__(self) -> Batch:
        if self._index >= len(self._data):
            raise StopIteration
        batch = self._data[self._index]
        self._index += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """`state = iterator.state_dict()`: the epoch, the next batch, and the settings."""
        return {"epoch": self._data.epoch, "batch": self._index, **self._data.describe()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """`iterator.load_state_dict(state)`: continue at a saved position.

        Raises:
            DataError: the state is invalid, or of batches with other settings.
        """
        position: list[Any] = [state.get("epoch"), state.get("batch")]
        if not all(isinstance(number, int) and number >= 0 for number in position):
            raise DataError(
                f"the state is not from `iterator.state_dict()`: its epoch and batch must be whole "
                f"numbers, 0 or more; they are {position}"
            )
        if position[1] > len(self._data):
            raise DataError(
                f"the state is at batch {position[1]} of an epoch; these have {len(self._data)}"
            )
        for name, mine in self._data.describe().items():
            if state.get(name) != mine:
                raise DataError(
                    f"the state is of batches with {name}={state.get(name)!r}; these have "
                    f"{name}={mine!r}: make the batches with the saved settings"
                )
        self._data.set_epoch(state["epoch"])
        self._index = state["batch"]


def _as_array(leaf: Any, batch_size: int) -> np.ndarray[Any, Any] | Store:
    """A leaf as a NumPy array in the byte order of the machine, because JAX has no other."""
    check_alive("among arrays", leaf)
    store = store_of(leaf)
    if store is not None:
        return store
    if not hasattr(leaf, "shape") or len(leaf.shape) == 0:
        raise DataError(
            f"expected arrays with the examples along axis 0, as in "
            f"`batches((images, labels), {batch_size})`; one leaf is {leaf!r:.80}"
        )
    is_masked = isinstance(leaf, np.ma.MaskedArray)
    array = unmasked(leaf, "the arrays") if is_masked else _tree.to_numpy(leaf)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


batches = Batches
