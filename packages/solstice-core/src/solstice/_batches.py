"""Arrays in memory, cut into batches."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from solstice._errors import DataError
from solstice._types import Batch


class Batches:
    """`solstice.data.batches((images, labels), 32, shuffle=True, seed=0)`: batches of arrays.

    Its order depends on the seed and the epoch alone: every pass over it gives the batches of the
    epoch last named by `set_epoch` (0 until then). The Trainer names each epoch as it begins.

    Args:
        arrays: an array or a pytree of arrays (a tuple, a dict ...) whose axis 0 is the example,
            of one length. Copied only where they are no NumPy arrays yet.
        batch_size: examples in a batch, 1 or more. The last batch may be smaller.
        shuffle: another order for each epoch.
        seed: a non-negative integer that decides on the orders.
        drop_last: leave out a last batch that is smaller.

    Raises:
        DataError: there is no array, the lengths differ, or `batch_size` is below 1.
    """

    def __init__(
        self,
        arrays: Any,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        given: Any = batch_size
        whole = isinstance(given, int | np.integer) and not isinstance(given, bool)
        if not whole or batch_size < 1:
            raise DataError(f"batch_size must be 1 or more examples; it is {batch_size!r}")
        leaves: list[Any] = jax.tree.leaves(arrays)
        self._treedef: Any = jax.tree.structure(arrays)
        for leaf in leaves:
            if not hasattr(leaf, "shape") or len(leaf.shape) == 0:
                raise DataError(
                    f"expected arrays whose axis 0 is the example, as in "
                    f"`batches((images, labels), {batch_size})`; one leaf is {leaf!r:.80}"
                )
        self._leaves = [np.asarray(leaf) for leaf in leaves]
        lengths = [len(leaf) for leaf in self._leaves]
        if len(set(lengths)) != 1:
            raise DataError(f"arrays must be of one length on axis 0; the lengths are {lengths}")
        self._length = lengths[0]
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """`data.set_epoch(3)`: the next pass gives the order of epoch 3."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self._length, self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[Batch]:
        order = None
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self._length)
        for index in range(len(self)):
            part: Any = slice(index * self.batch_size, (index + 1) * self.batch_size)
            rows = part if order is None else order[part]
            yield jax.tree.unflatten(self._treedef, [leaf[rows] for leaf in self._leaves])

    def __repr__(self) -> str:
        return (
            f"Batches({self._length:,} examples, batch_size={self.batch_size}, "
            f"shuffle={self.shuffle}, seed={self.seed}, drop_last={self.drop_last})"
        )


batches = Batches
