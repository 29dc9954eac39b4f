"""Resident data: the arrays lie on the device, and a block is a range of rows of them.

A call reads each batch within the compiled loop, so nothing is copied per batch, and the length of
a call is not bounded by the bytes of its batches.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import jax
import numpy as np
from jax import Array, lax

from solstice import _tree
from solstice._batch import own
from solstice._engine._block_size import BlockSize
from solstice._engine._buffer import InUse
from solstice._engine._deferred import DeferredError
from solstice._engine._placement import SINGLE_DEVICE, Placement
from solstice._memory import aligned
from solstice._record import Times
from solstice._types import Batch

_SLOTS = 2
"""Blocks whose calls have not ended: one that runs, and the next."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Batches as rows of arrays on the device, in place of stacked batches in `run_block`.

    Attributes:
        arrays: all examples, along axis 0.
        order: the row of each example of the epoch; None if they are in the order of the arrays.
        start: the place in that order of the first example of batch 0, a uint32.
        size: the examples in a batch.
        most: the most batches in a call.
    """

    arrays: Batch
    order: Any
    start: Any
    size: int = field(metadata={"static": True})
    most: int = field(metadata={"static": True})

    def batch(self, index: Array | int) -> Batch:
        """Batch `index`, within a compiled call."""
        start = self.start + index * self.size
        if self.order is None:
            read = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=self.size)
        else:
            read = partial(_take, lax.dynamic_slice_in_dim(self.order, start, self.size))
        return _tree.map(read, self.arrays)

    def after(self, index: int) -> "Rows":
        """The same without the first `index` batches."""
        start = self.start + np.uint32(index * self.size)
        return Rows(self.arrays, self.order, start, self.size, self.most)


def _take(rows: Array, array: Array) -> Array:
    """Rows of an array. `array[rows]` would add operations for indices out of bounds."""
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(1, array.ndim)), collapsed_slice_dims=(0,), start_index_map=(0,)
    )
    sizes = (1, *array.shape[1:])
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(array, rows[:, None], numbers, sizes, mode=mode)


@dataclass(frozen=True)
class EpochOfRows:
    """One epoch of a data set on the device.

    Attributes:
        arrays: all examples, on the device.
        order: the order of the epoch, on the host; None for that of the arrays.
        num_examples: the length of the arrays.
        batch_size: examples in a batch; the last may be smaller.
        start: the first batch to read.
        stop: the batch before which the epoch ends.
        examples: all examples, on the host.
        read: makes a batch of NumPy arrays, by its index.
    """

    arrays: Batch
    order: np.ndarray[Any, Any] | None
    num_examples: int
    batch_size: int
    start: int
    stop: int
    examples: Batch
    read: Callable[[int], Batch]

    @property
    def num_full(self) -> int:
        """The number of batches of `batch_size` examples."""
        return self.num_examples // self.batch_size


class _Batches(Sequence[Batch]):
    """The batches of a block as callbacks see them, made when they are read."""

    def __init__(self, epoch: EpochOfRows, start: int, size: int) -> None:
        self._epoch, self._start, self._size = epoch, start, size

    def __len__(self) -> int:
        return self._size

    def first(self, count: int) -> "_Batches":
        """The first `count` of them."""
        return _Batches(self._epoch, self._start, count)

    def __getitem__(self, index: Any) -> Any:
        return own(self._epoch.read(self._start + index))  # else a view of read-only memory


@dataclass(frozen=True)
class ResidentBlock:
    """A `Block` of batches on the device.

    Attributes:
        placed: the rows of its batches.
        slot: the calls of this block.
        batches: its batches on the host, made when they are read.
    """

    placed: Rows
    slot: InUse
    batches: _Batches

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def num_examples(self) -> int:
        """Examples in each batch."""
        return self.placed.size

    @property
    def is_whole(self) -> bool:
        """True: each process has all examples."""
        return True

    @property
    def on_device(self) -> bool:
        """True."""
        return True

    def arrays(self, index: int) -> Batch:
        """The arrays of a batch in JAX's dtypes."""
        return _tree.map(_as_in_a_step, self.batches[index])


class ResidentBuffers:
    """The sizes of blocks of data on the device, and the calls that have not ended.

    Args:
        sizes: the size of blocks.
        placement: the device of the data.

    Attributes:
        sizes, placement: the arguments.
        are_valid: whether a stacked check has accepted all examples; None before it.
    """

    def __init__(self, sizes: BlockSize, placement: Placement = SINGLE_DEVICE) -> None:
        self.sizes = sizes
        self.placement = placement
        self.are_valid: bool | None = None
        self._slots = deque(InUse() for _ in range(_SLOTS))
        self._seen: set[int] = set()

    @property
    def num_shapes(self) -> int:
        """The number of sizes of batches so far; each has a compiled program."""
        return len(self._seen)

    def wait(self) -> None:
        """Waits for the calls of the newest blocks; raises the error of one that failed."""
        for slot in self._slots:
            slot.wait(self.sizes)

    def is_new(self, size: int) -> bool:
        """Whether no batch of this size has come yet."""
        return size not in self._seen

    def next(self, size: int) -> InUse:
        """A slot for a block of batches of this size; waits for the calls of the last but one."""
        self._seen.add(size)
        slot = self._slots[0]
        self._slots.rotate(-1)
        slot.wait(self.sizes)
        return slot


class ResidentFeeder:
    """Makes the blocks of one epoch of data on the device, like `Feeder`.

    Args:
        epoch: the epoch.
        buffers: the sizes of blocks.
        check: called with each batch before its use; None for no check.
        stacked_check: called with all examples, stacked as one batch, in place of `check`, which is
            then called for the first batch of each size. If it raises, it is called with each
            batch.
        times: the seconds of reading batches for `check` and of the device are added here.
    """

    def __init__(
        self,
        epoch: EpochOfRows,
        buffers: ResidentBuffers,
        check: Callable[[Batch], None] | None,
        stacked_check: Callable[[Batch], None] | None = None,
        times: Times | None = None,
    ) -> None:
        self._epoch = epoch
        self._buffers = buffers
        self._check = check
        self._stacked_check = stacked_check
        self._times = times or Times()
        self._at = epoch.start
        order = None if epoch.order is None else buffers.placement.put(_numbers(epoch.order))
        self._rows = Rows(epoch.arrays, order, np.uint32(0), epoch.batch_size, buffers.sizes.most)
        self._error = DeferredError()

    def take(self, until_look: int, until_end: int | None = None) -> ResidentBlock | None:
        """The next block; None at the end of the data or of the run. See `Feeder.take`."""
        epoch, start = self._epoch, self._at
        if until_end == 0:
            return None
        if self._error or start >= epoch.stop:
            self._error.raise_kept()
            return None
        # The smaller last batch is a block of its own.
        end = min(epoch.stop, epoch.num_full) if start < epoch.num_full else epoch.stop
        size = min(epoch.batch_size, epoch.num_examples - start * epoch.batch_size)
        if self._stacked_check is not None and self._check and self._buffers.is_new(size):
            self._check(epoch.read(start))
        began = time.perf_counter()
        slot = self._buffers.next(size)
        self._times.device += time.perf_counter() - began
        most = self._buffers.sizes.next(until_look, until_end)
        count = self._checked(start, min(most, end - start))
        if count == 0:
            self._error.raise_kept()
        self._at = start + count
        first = np.uint32(start * epoch.batch_size)
        rows = Rows(self._rows.arrays, self._rows.order, first, size, self._rows.most)
        return ResidentBlock(rows, slot, _Batches(epoch, start, count))

    def cut(self, block: ResidentBlock, count: int) -> ResidentBlock:
        """The first `count` batches of the newest block. The others are the next to be read."""
        self._at -= len(block) - count
        return replace(block, batches=block.batches.first(count))

    def _checked(self, start: int, count: int) -> int:
        """The number of batches before the first invalid one, at most `count`.

        Slow checks give shorter blocks, as a slow data set does.
        """
        check = self._check if self._stacked_check is None else self._of_values()
        if check is None:
            return count
        done, began = 0, time.monotonic()
        while done < count:
            read = time.perf_counter()
            batch = self._epoch.read(start + done)
            self._times.data += time.perf_counter() - read
            if not self._error.accepts(check, batch):
                break
            done += 1
            if self._buffers.sizes.is_full(done, count, time.monotonic() - began):
                break
        return done

    def _of_values(self) -> Callable[[Batch], None] | None:
        """The stacked check for one batch; None if it has accepted all examples."""
        check, buffers = cast("Callable[[Batch], None]", self._stacked_check), self._buffers
        if buffers.are_valid is None:  # once, because the arrays do not change
            buffers.are_valid = DeferredError().accepts(check, _stacked(self._epoch.examples))
        return None if buffers.are_valid else lambda batch: check(_stacked(batch))


def _stacked(batch: Batch) -> Batch:
    """One batch, with an axis of one in front."""
    return _tree.map(_with_axis, batch)


def _with_axis(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array[None]


def _numbers(order: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The order in memory that each call on the CPU reads in place."""
    numbers = aligned(order.shape, np.uint32)
    numbers[:] = order
    return numbers


def _as_in_a_step(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
