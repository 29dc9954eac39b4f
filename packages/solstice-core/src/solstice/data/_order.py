"""Order: the shuffled rows of an epoch, for the positions that are asked for."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_WHOLE = 2**20
"""The most rows with a permutation in memory: 8 MiB, 15 ns a row, and every order equally likely. A
keyed permutation takes 17 ns a row, and gives some orders of 5 rows twice as often as others."""

_CHUNK = 2**14
"""Positions to permute at once, in 17 ns each; those of a batch of 32 alone take 2,000."""

_NEAR = _CHUNK // 4
"""A position at most so far after the known ones is read in sequence, even if only in parts."""

# 2 rounds are a bijection already. With 4, the differences of neighbours in the order of 1,000 rows
# fail a chi-squared test over 2,000 seeds; with 6, those of 64 rows over 6,000; with 8, none do.
_ROUNDS = 8


@dataclass(frozen=True)
class _Known:
    """The rows at the positions from `start` to `stop`, in the order of an epoch."""

    epoch: int
    start: int
    stop: int
    rows: np.ndarray[Any, Any]

    def leads_to(self, epoch: int, start: int) -> bool:
        """Whether a reader of these rows may read on at `start`."""
        return self.epoch == epoch and self.start < start <= self.stop + _NEAR


class Order:
    """`Order(10**10, seed=0).rows(epoch=7, start=64, stop=96)`: rows of a shuffled epoch.

    A pure function of the arguments: of more than 2**20 rows it takes constant memory, at any
    position.

    Args:
        length: the number of rows.
        seed: the seed of the orders.
    """

    def __init__(self, length: int, seed: int) -> None:
        self._length, self._seed = length, seed
        self._known = _Known(-1, 0, 0, np.empty(0, np.int64))

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray[Any, Any]:
        """The rows at the positions from `start` to `stop`, as int64."""
        known = self._known  # read once, because passes in several threads may share this object
        if epoch != known.epoch or start < known.start or stop > known.stop:
            known = self._known = self._found(known, epoch, start, stop)
        return known.rows[start - known.start : stop - known.start]

    def _found(self, known: _Known, epoch: int, start: int, stop: int) -> _Known:
        if self._length <= _WHOLE:
            # Not the sum, which would give epoch 1 of seed 0 the order of epoch 0 of seed 1.
            rng = np.random.default_rng([self._seed, epoch])
            return _Known(epoch, 0, self._length, rng.permutation(self._length))
        if known.leads_to(epoch, start):  # rows in advance, for the next batches
            stop = min(max(stop, start + _CHUNK), self._length)
        permutation = KeyedPermutation(self._length, self._seed, epoch)
        return _Known(epoch, start, stop, permutation(start, stop))


class KeyedPermutation:
    """`KeyedPermutation(10**10, seed=0, epoch=7)(64, 96)`: images of the positions 64 to 95.

    A Feistel network on a rectangle of `length` cells or a few more: each round adds to one
    coordinate, modulo its side, a hash of the other one. Cells past the end walk on along their
    cycle. Format-preserving encryption shuffles so (Black and Rogaway, "Ciphers with Arbitrary
    Finite Domains", 2002), here without its secrecy.

    Args:
        length: the number of positions, at most 2**62.
        seed: with `epoch`, the key.
        epoch: as `seed`.
    """

    def __init__(self, length: int, seed: int, epoch: int) -> None:
        side = math.isqrt(max(length - 1, 0)) + 1
        self._length = np.uint64(length)
        self._sides = np.uint64(side), np.uint64(-(-length // side))
        self._keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)

    def __call__(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """The images of the positions from `start` to `stop`, as int64."""
        images = np.empty(stop - start, np.int64)
        for first in range(start, stop, _CHUNK):  # temporaries stay in the cache
            last = min(first + _CHUNK, stop)
            positions = np.arange(first, last, dtype=np.uint64)
            images[first - start : last - start] = self._walked(positions)
        return images

    def _walked(self, cells: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        cells = self._network(cells)
        outside = np.flatnonzero(cells >= self._length)
        while outside.size:
            cells[outside] = self._network(cells[outside])
            outside = outside[cells[outside] >= self._length]
        return cells

    def _network(self, cells: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        side, other = self._sides
        x, y = np.divmod(cells, other)
        for key in self._keys:  # an even number, so that `x` is below the first side again
            x += _hash(y + key, side)
            # Of unsigned numbers: the difference is huge unless `x` is at least the side.
            x, y = y, np.minimum(x, x - side)
            side, other = other, side
        return x * other + y


def _hash(numbers: np.ndarray[Any, Any], bound: np.uint64) -> np.ndarray[Any, Any]:
    """Hashes of 64-bit numbers, from 0 to below a bound of at most 2**32.

    The mixer of SplitMix64 (Steele, Lea and Flood, 2014), of which the upper half counts.
    """
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers >>= np.uint64(32)
    numbers *= bound
    numbers >>= np.uint64(32)
    return numbers
