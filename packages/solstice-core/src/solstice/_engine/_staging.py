"""Staging buffers: batches are stacked into reused memory, up to K per block.

The main thread fills a block while the device works on the one before. A buffer is filled again
only after its program has ended, because JAX may read aligned NumPy memory in place on the CPU:
filling it too early would change the batches of a running step. Because batches are copied, a data
set may reuse its own memory.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import Array

from solstice import _tree
from solstice._batch import is_numeric
from solstice._engine._block_size import BlockSize
from solstice._engine._interrupts import begin_wait, end_wait
from solstice._engine._placement import SINGLE_DEVICE, Placement, warn_of_spread_batch
from solstice._errors import DataError
from solstice._record import Times
from solstice._types import Batch

_ALIGNMENT = 64
"""In bytes. JAX on the CPU reads memory of this alignment without a copy."""

_SLOTS = 2
"""Buffers per kind of batch: the device reads one while the other is filled."""

_SHAPES = 2
"""Kinds of batches with buffers: the usual one, and that of a partial last batch."""


@dataclass(frozen=True)
class Block:
    """Batches of one kind, stacked for one call.

    Attributes:
        size: the number of batches.
        stacked: their arrays with a leading axis of K; the first `len(block)` rows are valid.
        placed: `stacked` on the devices of the run.
        slot: the buffer that holds them.
        batches: the batches with text and objects, if the Feeder keeps them.
    """

    size: int
    stacked: Batch
    placed: Batch
    slot: "_Buffer"
    batches: list[Batch]

    def __len__(self) -> int:
        return self.size

    @cached_property  # because it is read at each step that a callback sees
    def num_examples(self) -> int:
        """Examples in each batch: the length of axis 0 of the first array that has one."""
        return next((x.shape[1] for x in _tree.leaves(self.stacked) if x.ndim > 1), 1)

    def arrays(self, index: int) -> Batch:
        """The arrays of a batch: views of the buffer, which the next block but one overwrites."""
        return _tree.row(self.stacked, (index, ...))  # `...`, because NumPy else makes numbers


class Feeder:
    """Makes the blocks of one epoch.

    Args:
        batches: the batches, of NumPy or JAX arrays.
        slots: the staging buffers.
        check: called with each batch before its use; raises if it is invalid.
        times: the seconds of data, copies and the device are added here.
        clock: returns the time in seconds.
        keep: makes the entries of `Block.batches`; None for none. It may copy, because a batch is
            valid only until the next one is read.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        slots: "StagingBuffers",
        check: Callable[[Batch], None],
        times: Times | None = None,
        clock: Callable[[], float] = time.monotonic,
        keep: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self._clock = clock
        self._keep = keep
        self._batches = batches
        self._slots = slots
        self._check = check
        self._times = times or Times()
        self._held: _FlatBatch | None = None
        self._error: Exception | None = None

    def take(self, until_look: int, until_end: int | None = None) -> Block | None:
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
            self._raise_error()
            return None
        began = time.perf_counter()
        slot = self._slots.next(batch)
        self._times.device += time.perf_counter() - began
        start, sizes = self._clock(), self._slots.sizes
        most = sizes.next(until_look, until_end)  # after `slots.next`, from which `sizes` learns
        size, kept = 0, list[Batch]()
        while batch is not None:
            began = time.perf_counter()
            fits = slot.put(size, batch)
            if fits and self._keep is not None:
                kept.append(self._keep(batch.tree))
            self._times.copy += time.perf_counter() - began
            if not fits:
                self._held = batch  # the first batch of the next block
                break
            size += 1
            is_full = sizes.is_full(size, most, self._clock() - start)
            batch = None if is_full else self._next()
        placed = self._slots.placement.put(slot.stacked)
        return Block(size, slot.stacked, placed, slot, kept)

    def _raise_error(self) -> None:
        """Raises the error of the data set, if there is one."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # whose frames refer to this object

    def _next(self) -> "_FlatBatch | None":
        held, self._held = self._held, None
        if held is not None or self._error is not None:
            return held
        began = time.perf_counter()
        try:
            begin_wait()
            # Only this call is a wait: a signal must not cut `check_batch` short.
            batch = next(self._batches, None)
            end_wait()
            self._times.data += time.perf_counter() - began
            if batch is not None:
                self._check(batch)
        except Exception as error:  # not Ctrl-C, which ends the run at once
            self._error = error  # raised by `take`, after the earlier batches have been trained
            return None
        finally:
            end_wait()
        return None if batch is None else _FlatBatch(batch)


class _FlatBatch:
    """A batch, flattened once."""

    def __init__(self, batch: Batch) -> None:
        self.tree = batch
        self.leaves, self.treedef = _tree.flatten(batch)

    @property
    def kind(self) -> Hashable:
        """The structure, shapes and dtypes; batches of one kind fit into one block."""
        shapes = [(leaf.shape, leaf.dtype) if is_numeric(leaf) else None for leaf in self.leaves]
        return self.treedef, tuple(shapes)


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
        rings: "BuffersByKind | None" = None,
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

    @property
    def num_shapes(self) -> int:
        """The number of kinds of batches so far; each has a compiled program."""
        return len(self._seen)

    def next(self, batch: _FlatBatch) -> "_Buffer":
        """A buffer for batches of this kind; waits until no program reads it."""
        kind = batch.kind
        if kind not in self._seen:  # once per kind, not once per batch
            self._check_structure(batch)
            self._has_warned = self._has_warned or warn_of_spread_batch(batch.tree)
            self._seen.add(kind)
        ring = self.rings.pop(kind, None)
        if ring is None:
            while len(self.rings) >= _SHAPES:
                self.rings.pop(next(iter(self.rings)))
            ring = deque(_Buffer(batch, self.sizes.most) for _ in range(_SLOTS))
        self.rings[kind] = ring  # inserted last, so the least recent kind is dropped first
        slot = ring[0]
        ring.rotate(-1)
        slot.wait(self.sizes)
        return slot

    def _check_structure(self, batch: _FlatBatch) -> None:
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


def _leaf_kinds(batch: _FlatBatch) -> dict[str, str]:
    """The properties that all batches share: the leaves, their dtypes and ranks."""
    return {
        path: f"{leaf.dtype} of {leaf.ndim} axes" if is_numeric(leaf) else "not an array"
        for path, leaf in _tree.leaves_by_path(batch.tree)
    }


_Column: TypeAlias = tuple[np.ndarray | None, tuple[int, ...], Any]
_NO_COLUMN: _Column = None, (), None
"""The column of a leaf that is not an array."""


class _Buffer:
    """Memory for K batches of one kind.

    Attributes:
        size: K.
        stacked: this memory, as one batch with a leading axis of K.
    """

    def __init__(self, batch: _FlatBatch, size: int) -> None:
        self.size = size
        self._call: tuple[list[Any], int, float] | None = None
        self._treedef = batch.treedef
        self._columns = [
            (_aligned(size, leaf), leaf.shape, leaf.dtype) if is_numeric(leaf) else _NO_COLUMN
            for leaf in batch.leaves
        ]
        memory = [column[0] for column in self._columns]
        self.stacked: Batch = _tree.unflatten(self._treedef, memory)

    def put(self, index: int, batch: _FlatBatch) -> bool:
        """Copies a batch into row `index`; False if it is of another kind."""
        if batch.treedef != self._treedef:
            return False
        for (memory, shape, dtype), leaf in zip(self._columns, batch.leaves, strict=True):
            if memory is None:
                if is_numeric(leaf):
                    return False
            elif getattr(leaf, "shape", None) == shape and leaf.dtype == dtype:
                memory[index] = leaf  # also converts to JAX's dtype, such as float64 to float32
            else:
                return False
        return True

    @property
    def nbytes(self) -> int:
        """The size of this memory in bytes."""
        return sum(memory.nbytes for memory, _, _ in self._columns if memory is not None)

    def mark_in_use(self, ends: list[Array], steps: int, began: float) -> None:
        """Marks the memory as read by calls of `steps` steps, until all `ends` are ready.

        The calls add their `ends` as they are made.
        """
        self._call = ends, steps, began

    def begin(self) -> None:
        """Sets the start of the call to now, because the time before was compilation."""
        if self._call is not None:
            ends, steps, _ = self._call
            self._call = ends, steps, time.monotonic()

    def wait(self, sizes: BlockSize) -> None:
        """Waits until no call reads this memory; `sizes` learns the time of the calls."""
        call, self._call = self._call, None
        if call is not None:
            ends, steps, began = call
            # If the calls have ended already, the measured time includes time after their end.
            was_awaited = not all(end.is_ready() for end in ends)
            jax.block_until_ready(ends)
            sizes.learn(steps, time.monotonic() - began, was_awaited=was_awaited)


BuffersByKind: TypeAlias = dict[Hashable, deque[_Buffer]]


def _aligned(size: int, like: np.ndarray | Array) -> np.ndarray:
    """Memory for `size` arrays in JAX's dtype, aligned so that JAX can read it in place."""
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(like.dtype))
    shape = (size, *like.shape)
    length = int(np.prod(shape)) * dtype.itemsize
    # NumPy does not align to 64 bytes, so this is an aligned part of a larger array.
    memory = np.empty(length + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + length].view(dtype).reshape(shape)
