"""Shuffled orders: each is a permutation, without one in memory, and looks like a random one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice.data import _order
from solstice.data._order import KeyedPermutation, Order

LARGE = 10**10
ROWS = 1000


def keyed(length, seed=0, epoch=0):
    """The whole order of a keyed permutation."""
    return KeyedPermutation(length, seed, epoch)(0, length)


def is_likely(counts, expected, freedom):
    """Whether counts are within 4 standard deviations of what chance gives them, by chi squared."""
    found = (np.square(counts - expected) / expected).sum()
    return abs(found - freedom) < 4 * math.sqrt(2 * freedom)


@pytest.fixture(scope="module")
def orders():
    """The orders of 1,000 rows by 2,000 seeds."""
    return np.stack([keyed(ROWS, seed) for seed in range(2000)])


def test_a_keyed_order_has_every_row_once():
    for length in [*range(1, 300), 2**14 - 1, 2**14 + 1, 99_991, 2**20 + 1]:
        assert np.array_equal(np.sort(keyed(length, seed=length)), np.arange(length)), length


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 10**5), seed=st.integers(0, 2**70), data=st.data())
def test_a_part_of_a_keyed_order_is_that_of_the_whole(length, seed, data):
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    part = KeyedPermutation(length, seed, 3)(start, stop)
    assert part.tolist() == keyed(length, seed, 3)[start:stop].tolist()


@settings(max_examples=20, deadline=None)
@given(
    reads=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 60_000), st.integers(0, 9000)), min_size=1
    )
)
def test_rows_do_not_depend_on_what_was_read_before(reads):
    length = 2**20 + 5
    order = Order(length, 4)
    for epoch, start, size in reads:
        found = order.rows(epoch, start, start + size)
        assert np.array_equal(found, KeyedPermutation(length, 4, epoch)(start, start + size))


def test_few_rows_have_any_order_equally_often():
    counts = {}
    for seed in range(4800):
        order = tuple(Order(4, seed).rows(0, 0, 4))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert is_likely(np.array([*counts.values()]), 200, 23)


def test_each_place_of_a_keyed_order_has_each_row_equally_often(orders):
    counts = np.zeros((20, 20))
    np.add.at(counts, (np.arange(ROWS) // 50, orders // 50), 1)
    assert is_likely(counts, len(orders) * ROWS / 400, 19 * 19)


def test_neighbours_in_a_keyed_order_are_independent(orders):
    for distance in (1, 2, 32):  # 32 is the side of the rectangle
        differences = (orders[:, distance:] - orders[:, :-distance]) % ROWS
        counts = np.bincount(differences.ravel(), minlength=ROWS)[1:]
        assert is_likely(counts, differences.size / (ROWS - 1), ROWS - 2)


def test_a_keyed_order_has_the_inversions_and_fixed_rows_of_a_random_one(orders):
    pairs = np.triu_indices(ROWS, 1)
    found = np.array([(order[pairs[0]] > order[pairs[1]]).sum() for order in orders[:200]])
    mean, deviation = ROWS * (ROWS - 1) / 4, math.sqrt(ROWS * (ROWS - 1) * (2 * ROWS + 5) / 72)
    assert abs(found.mean() - mean) < 4 * deviation / math.sqrt(len(found))
    assert 0.8 < found.std() / deviation < 1.2
    fixed = (orders == np.arange(ROWS)).sum(1)
    assert abs(fixed.mean() - 1) < 4 / math.sqrt(len(orders))
    assert abs(fixed.var() - 1) < 0.15


def test_orders_of_neighbouring_seeds_and_epochs_agree_by_chance_alone():
    order, places = keyed(ROWS, 5, 5), []
    for seed, epoch in [(5, 6), (6, 5), (4, 6), (6, 4), (5, 4), (50, 5), (2**64 + 5, 5)]:
        places.append((keyed(ROWS, seed, epoch) == order).sum())
    assert max(places) < 8  # each is 1 on average


def test_sampled_rows_of_a_large_order_are_distinct_and_anywhere():
    order = KeyedPermutation(LARGE, 1, 7)
    starts = np.linspace(0, LARGE - 10_000, 100).astype(int)  # in all parts of the epoch
    found = np.concatenate([order(start, start + 10_000) for start in starts.tolist()])
    assert found.dtype == np.int64
    # Of a million random rows with replacement, about 50 would be repeated.
    assert len(np.unique(found)) == len(found)
    assert 0 <= found.min() < found.max() < LARGE
    assert is_likely(np.bincount(found // (LARGE // 100)), len(found) / 100, 99)
    neighbours = np.diff(found) % LARGE
    assert is_likely(np.bincount(neighbours // (LARGE // 100)), len(neighbours) / 100, 99)


@pytest.mark.parametrize("length", [2**31 + 1, 2**40 + 3, 10**15, 2**62])
def test_rows_past_32_bits_are_in_bounds_and_distinct(length):
    found = KeyedPermutation(length, 0, 0)(length - 5000, length)
    assert len(np.unique(found)) == 5000
    assert 0 <= found.min() < found.max() < length
    assert found.max() > length // 2


def test_an_order_stays_the_same_in_all_processes_and_versions():
    """A change would end the exact resumption of runs."""
    found = KeyedPermutation(LARGE, 0, 7)(0, 4)
    assert found.tolist() == [5268729917, 1691677385, 37405482, 5351056331]
    found = KeyedPermutation(2**20 + 1, 5, 0)(2**19, 2**19 + 4)
    assert found.tolist() == [310327, 755319, 377577, 446513]


class Last(solstice.Experiment):
    """A number that depends on the order of the rows."""

    number: jax.Array

    def train_step(self, batch):
        return solstice.replace(self, number=self.number * 31 + batch[0] + 7 * batch[-1]), None

    def eval_step(self, batch):
        return self, None


def test_many_rows_on_the_device_have_the_order_of_those_on_the_host():
    rows = np.arange(_order._WHOLE + 3, dtype=np.uint32)
    numbers = [
        solstice.Trainer().fit(
            Last(jnp.uint32(0)),
            solstice.data.batches(rows, 2**15, shuffle=True, on_device=on_device),
            num_epochs=2,
        )
        for on_device in (True, False)
    ]
    assert numbers[0].number == numbers[1].number


def test_every_example_of_many_comes_once_an_epoch():
    length = _order._WHOLE + 3
    data = solstice.data.batches(np.arange(length), 5000, shuffle=True, seed=3)
    for epoch in range(2):
        data.set_epoch(epoch)
        found = np.concatenate(list(data))
        assert np.array_equal(found, data.order)
        assert np.array_equal(np.sort(found), np.arange(length))


def test_reading_in_sequence_computes_rows_for_many_batches_at_once(monkeypatch):
    sizes, permute = [], KeyedPermutation.__call__

    def counted(self, start, stop):
        sizes.append(stop - start)
        return permute(self, start, stop)

    monkeypatch.setattr(KeyedPermutation, "__call__", counted)
    order = Order(LARGE, 0)
    for start in range(0, 320_000, 32):
        order.rows(0, start, start + 16)  # half of each batch
    assert len(sizes) < 25
    sizes.clear()
    for start in range(0, LARGE, LARGE // 10):
        order.rows(1, start, start + 32)
    assert sizes == [32] * 10  # and no more for batches anywhere
