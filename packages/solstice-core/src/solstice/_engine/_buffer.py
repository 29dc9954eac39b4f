"""Buffer: memory for the batches of one block, of one kind."""

import time
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any, TypeAlias, TypeGuard

import jax
import numpy as np
from jax import Array

from solstice import _tree
from solstice._batch import from_device, is_numeric
from solstice._engine._block_size import BlockSize
from solstice._memory import aligned
from solstice._types import Batch

_PAIR = _tree.structure((0, 0))


class FlatBatch:
    """A batch, flattened once."""

    def __init__(self, batch: Batch) -> None:
        self.tree = batch
        self.leaves: Sequence[Any] = ()
        if _is_pair(batch):  # the usual case, in a third of the time
            self.leaves, self.treedef = batch, _PAIR
        else:
            leaves, self.treedef = _tree.flatten(batch)
            self.leaves = from_device(leaves)

    @cached_property
    def kind(self) -> Hashable:
        """The structure, shapes and dtypes; batches of one kind fit into one block."""
        shapes = [(leaf.shape, leaf.dtype) if is_numeric(leaf) else None for leaf in self.leaves]
        return self.treedef, tuple(shapes)


def _is_pair(batch: Any) -> TypeGuard[tuple[np.ndarray, np.ndarray]]:
    return (
        batch.__class__ is tuple
        and len(batch) == 2
        and type(batch[0]) is np.ndarray
        and type(batch[1]) is np.ndarray
    )


class InUse:
    """The calls that read one piece of memory: when they end, and how long they took."""

    def __init__(self) -> None:
        self._call: tuple[list[Any], int, float] | None = None

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


_Column: TypeAlias = tuple[np.ndarray | None, tuple[int, ...], Any]
_NO_COLUMN: _Column = None, (), None
"""The column of a leaf that is not an array."""


class Buffer:
    """Memory for K batches of one kind.

    Attributes:
        size: K.
        stacked: this memory, as one batch with a leading axis of K.
        in_use: the calls that read it.
        num_examples: as in `StagedBlock`.
    """

    def __init__(self, batch: FlatBatch, size: int) -> None:
        self.size = size
        self.in_use = InUse()
        self._treedef = batch.treedef
        memory = [_aligned(size, leaf) if is_numeric(leaf) else None for leaf in batch.leaves]
        self.stacked: Batch = _tree.unflatten(self._treedef, memory)
        self._columns = [
            _NO_COLUMN if rows is None else (_read_into(rows, leaf), leaf.shape, leaf.dtype)
            for rows, leaf in zip(memory, batch.leaves, strict=True)
        ]
        self.num_examples: int = next((shape[0] for _, shape, _ in self._columns if shape), 1)
        self._converted = [
            (to, given)
            for to, (given, _, _) in zip(memory, self._columns, strict=True)
            if to is not None and given is not None and given is not to
        ]

    def put(self, index: int, batch: FlatBatch) -> bool:
        """Copies a batch into row `index`; False if it is of another kind."""
        if batch.treedef is not self._treedef and batch.treedef != self._treedef:
            return False
        for (memory, shape, dtype), leaf in zip(self._columns, batch.leaves, strict=True):
            if memory is None:
                if is_numeric(leaf):
                    return False
            elif getattr(leaf, "shape", None) == shape and leaf.dtype == dtype:
                memory[index] = leaf  # also converts floats to JAX's dtype
            else:
                return False
        return True

    def rows(self, start: int, stop: int) -> Batch:
        """The batches from `start` to `stop`, stacked and read-only.

        Integers are in their own dtype.
        """
        rows = [None if given is None else given[start:stop] for given, _, _ in self._columns]
        for array in rows:
            if array is not None:
                array.flags.writeable = False  # a check that changes them would change the step
        return _tree.unflatten(self._treedef, rows)

    def batch(self, index: int) -> Batch:
        """A copy of a batch, in the dtypes in which it came; without text and objects."""
        leaves = [
            None if given is None else given[index].astype(dtype)
            for given, _, dtype in self._columns
        ]
        return _tree.unflatten(self._treedef, leaves)

    def convert(self, size: int) -> None:
        """Converts the integers of the first `size` batches to JAX's dtype."""
        for to, given in self._converted:
            to[:size] = given[:size]

    @property
    def nbytes(self) -> int:
        """The size of this memory in bytes."""
        arrays = [*_tree.leaves(self.stacked), *(given for _, given in self._converted)]
        return sum(memory.nbytes for memory in arrays)


def _read_into(memory: np.ndarray, like: np.ndarray | Array) -> np.ndarray:
    """The array into which batches are copied: `memory`, or one of wider integers.

    Checks must see a label of 2**32 before it becomes 0 in int32.
    """
    if memory.dtype == like.dtype or memory.dtype.kind not in "iu":
        return memory
    return np.empty(memory.shape, like.dtype)


def _aligned(size: int, like: np.ndarray | Array) -> np.ndarray:
    """Memory for `size` arrays in JAX's dtype."""
    return aligned((size, *like.shape), jax.dtypes.canonicalize_dtype(like.dtype))
