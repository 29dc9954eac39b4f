"""Staging buffers: batches are stacked into reused memory, up to K per block.

The main thread fills a block while the device works on the one before. A buffer is filled again
only after its program has ended, because JAX may read aligned NumPy memory in place on the CPU:
filling it too early would change the batches of a running step. Because batches are copied, a data
set may reuse its own memory.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from solstice import _tree
from solstice._batch import is_numeric
from solstice._engine._block_size import BlockSize
from solstice._engine._buffer import Buffer, FlatBatch, InUse
from solstice._engine._deferred import DeferredError
from solstice._engine._interrupts import begin_wait, end_wait
from solstice._engine._placement import (
    SINGLE_DEVICE,
    Placement,
    check_batch_on_host,
    warn_of_spread_batch,
)
from solstice._errors import DataError
from solstice._record import Times
from solstice._types import Batch

_SLOTS = 2
"""Buffers per kind of batch: the device reads one while the other is filled."""

_SHAPES = 2
"""Kinds of batches with buffers: the usual one, and that of a partial last batch."""


@dataclass(frozen=True)
class StagedBlock:
    """Batches of one kind, stacked for one call.

    Attributes:
        size: the number of batches.
        buffer: the memory that holds them; its first `len(block)` rows are valid.
        placed: this memory on the devices of the run.
        batches: the batches with text and objects, if the Feeder keeps them.
        num_shares: the number of processes that each have a share of a batch.
    """

    size: int
    buffer: Buffer
    placed: Batch
    batches: list[Batch]
    num_shares: int = 1

    def __len__(self) -> int:
        return self.size

    @property
    def slot(self) -> InUse:
        """The calls that read the buffer."""
        return self.buffer.in_use

    @property
    def num_examples(self) -> int:
        """Examples in each batch: the length of axis 0 of the first array that has one."""
        return self.buffer.num_examples * self.num_shares

    @property
    def is_whole(self) -> bool:
        """Whether this process has all of each batch."""
        return self.num_shares == 1

    @property
    def on_device(self) -> bool:
        """False: they are copied there for their call."""
        return False

    def arrays(self, index: int) -> Batch:
        """The arrays of a batch: views of the buffer, which the next block but one overwrites."""
        return _tree.row(
            self.buffer.stacked, (index, ...)
        )  # `...`, because NumPy else makes numbers


class Feeder:
    """Makes the blocks of one epoch.

    Args:
        batches: the batches, of NumPy or JAX arrays.
        slots: the staging buffers.
        check: called with each batch before its use; raises if it is invalid. None for no check.
        stacked_check: called with the stacked batches of each block in place of `check`, which is
            then called for the first batch of each kind.
        times: the seconds of data, copies and the device are added here.
        clock: returns the time in seconds; `time.perf_counter` if None.
        keep: makes the entries of `StagedBlock.batches`; None for none. It may copy, because a
            batch is valid only until the next one is read.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        slots: "StagingBuffers",
        check: Callable[[Batch], None] | None,
        stacked_check: Callable[[Batch], None] | None = None,
        times: Times | None = None,
        clock: Callable[[], float] | None = None,
        keep: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self._clock = clock or time.perf_counter
        self._keep = keep
        self._batches = batches
        self._slots = slots
        self._check = check
        self._stacked_check = stacked_check
        self._times = times or Times()
        self._held: list[FlatBatch] = []  # read, and not yet in a block
        self._error = DeferredError()
        self._read_at = 0.0

    def take(self, until_look: int, until_end: int | None = None) -> StagedBlock | None:
        """The next block; None at the end of the data or of the run.

        The arguments are those of `BlockSize.next`.

        A batch of another kind starts another block. Blocks of a slow data set are shorter, because
        waiting for more batches saves nothing. An exception of the data set is raised only after
        the batches before it have been trained.
        """
        if until_end == 0:  # no batch is read that no step uses
            return None
        batch = self._next()
        if batch is None:
            self._error.raise_kept()
            return None
        if self._stacked_check is not None and self._check and self._slots.is_new(batch):
            self._check(batch.tree)
        began = self._clock()
        slot = self._slots.next(batch)
        start, sizes, times = self._clock(), self._slots.sizes, self._times
        times.device += start - began
        most = sizes.next(until_look, until_end)  # after `slots.next`, from which `sizes` learns
        size, kept, read = 0, list[Batch](), times.data
        while batch is not None:  # at most two readings of the clock for a batch
            if not slot.put(size, batch):
                self._held.insert(0, batch)  # the first batch of the next block
                break
            if self._keep is not None:
                kept.append(self._keep(batch.tree))
            size += 1
            is_full = sizes.is_full(size, most, self._read_at - start)
            batch = None if is_full else self._next()
        size = self._checked(slot, size)
        slot.convert(size)
        times.copy += self._clock() - start - (times.data - read)
        if size == 0:
            self._error.raise_kept()
        placed = self._slots.placement.put(slot.stacked)
        kept = kept[:size]
        return StagedBlock(size, slot, placed, kept, self._slots.placement.num_shares)

    def cut(self, block: StagedBlock, count: int) -> StagedBlock:
        """The first `count` batches of the newest block. The others are the next to be read."""
        kept, slot = block.batches, block.buffer
        indices = range(count, len(block))
        self._held[:0] = [FlatBatch(kept[i] if kept else slot.batch(i)) for i in indices]
        return replace(block, size=count, batches=kept[:count])

    def _checked(self, slot: Buffer, size: int) -> int:
        """The number of batches before the first that the `stacked_check` refuses."""
        check = self._stacked_check
        if check is None or self._error.accepts(check, slot.rows(0, size)):
            return size
        self._held.clear()  # it came after the refused batch, as an error of the data set would
        one_by_one = (self._error.accepts(check, slot.rows(i, i + 1)) for i in range(size))
        return next((i for i, is_good in enumerate(one_by_one) if not is_good), 0)

    def _next(self) -> FlatBatch | None:
        if self._held or self._error:
            return self._held.pop(0) if self._held else None
        batch: Batch = None
        began = self._clock()
        try:
            begin_wait()
            batch = next(self._batches, None)
        except Exception as error:  # not Ctrl-C, which ends the run at once
            self._error.keep(error)  # raised by `take`, after the earlier batches have been trained
        finally:
            end_wait()  # before the check, which a signal must not cut short
        self._read_at = self._clock()
        self._times.data += self._read_at - began
        if batch is None:
            return None
        check = self._check if self._stacked_check is None else None
        if check is not None and not self._error.accepts(check, batch):
            return None
        return FlatBatch(batch)


BuffersByKind: TypeAlias = dict[Hashable, deque[Buffer]]


class StagingBuffers:
    """The memory for blocks: two buffers for each of the two newest kinds of batches.

    Args:
        sizes: the size of blocks; `sizes.most` batches fit into a buffer.
        rings: the `rings` of StagingBuffers of an earlier run, to reuse their memory.
        placement: the devices to which blocks go.

    Attributes:
        rings: the buffers by kind of batch, the next one to fill first.
    """

    def __init__(
        self,
        sizes: BlockSize,
        rings: BuffersByKind | None = None,
        placement: Placement = SINGLE_DEVICE,
    ) -> None:
        self.sizes = sizes
        self.placement = placement
        # Buffers of another size would be another shape, hence another program.
        self.rings: BuffersByKind = {
            kind: ring for kind, ring in (rings or {}).items() if ring[0].size == sizes.most
        }
        self._first: dict[str, str] | None = None
        self._seen: set[Hashable] = set()
        self._has_warned = False

    @property
    def nbytes(self) -> int:
        """The size of this memory in bytes."""
        return sum(slot.nbytes for ring in self.rings.values() for slot in ring)

    def wait(self) -> None:
        """Waits for the calls that read this memory; raises the error of one that failed."""
        for ring in self.rings.values():
            for slot in ring:
                slot.in_use.wait(self.sizes)

    @property
    def num_shapes(self) -> int:
        """The number of kinds of batches so far; each has a compiled program."""
        return len(self._seen)

    def is_new(self, batch: FlatBatch) -> bool:
        """Whether no buffer has been asked for batches of this kind so far."""
        return batch.kind not in self._seen

    def next(self, batch: FlatBatch) -> Buffer:
        """A buffer for batches of this kind; waits until no program reads it."""
        kind = batch.kind
        if self.is_new(batch):  # once per kind, not once per batch
            self._check_structure(batch)
            if self.placement.is_mesh:
                check_batch_on_host(batch.tree)
            self._has_warned = self._has_warned or warn_of_spread_batch(batch.tree)
            self._seen.add(kind)
        ring = self.rings.pop(kind, None)
        if ring is None:
            while len(self.rings) >= _SHAPES:
                self.rings.pop(next(iter(self.rings)))
            ring = deque(Buffer(batch, self.sizes.most) for _ in range(_SLOTS))
        self.rings[kind] = ring  # inserted last, so the least recent kind is dropped first
        slot = ring[0]
        ring.rotate(-1)
        slot.in_use.wait(self.sizes)
        return slot

    def _check_structure(self, batch: FlatBatch) -> None:
        """Raises a DataError with the first leaf that differs from the first batch."""
        now = _leaf_kinds(batch)
        was = self._first = now if self._first is None else self._first
        if was == now:
            return
        path = next(path for path in [*was, *now] if was.get(path) != now.get(path))
        raise DataError(
            f"the batches of a data set must be alike: the leaf `batch{path}` was "
            f"{was.get(path, 'not there')} in the first batch and is "
            f"{now.get(path, 'not there')} in a later one"
        )


def _leaf_kinds(batch: FlatBatch) -> dict[str, str]:
    """The properties that all batches share: the leaves, their dtypes and ranks."""
    return {
        path: f"{leaf.dtype} of {leaf.ndim} axes" if is_numeric(leaf) else "not an array"
        for path, leaf in _tree.leaves_by_path(batch.tree)
    }
