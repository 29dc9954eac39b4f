"""Batches that are masked, padded, sought, and taken up again."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import DataError
from solstice.data import Masked, batches, pad_batch

X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20)


@given(length=st.integers(1, 9), more=st.integers(0, 9), masked=st.booleans())
def test_padding_repeats_examples_and_masks_them(length, more, masked):
    mask = np.arange(length) % 2 == 0
    batch = {"x": X[:length], "y": (Y[:length],)}
    padded = pad_batch(Masked(batch, mask) if masked else batch, length + more)
    assert padded.batch["x"].shape == (length + more, 2)
    np.testing.assert_array_equal(padded.batch["x"][:length], X[:length])
    assert np.isin(padded.batch["y"][0], Y[:length]).all()
    expected = np.zeros(length + more, bool)
    expected[:length] = mask if masked else True
    np.testing.assert_array_equal(padded.mask, expected)


def test_padding_of_tokens_keeps_their_mask():
    mask = np.ones((3, 4), bool)
    padded = pad_batch(Masked(np.zeros((3, 4), int), mask), 5)
    assert padded.mask.shape == (5, 4)
    assert padded.mask.sum() == 12


@pytest.mark.parametrize(
    ("batch", "lengths"),
    [((X, Y), r"\[20\]"), ((X[:4], Y[:3]), r"\[3, 4\]"), (X[:0], r"\[0\]"), ((), r"\[\]")],
)
def test_what_cannot_be_padded_is_told(batch, lengths):
    with pytest.raises(DataError, match=f"a batch of 1 to 8 examples up to 8.*{lengths}"):
        pad_batch(batch, 8)


def test_a_masked_batch_is_a_tree_that_the_trainer_feeds():
    class Counts(solstice.Experiment):
        total: np.ndarray

        def train_step(self, batch):
            counted = batch.mask.astype(np.float32)
            return solstice.replace(self, total=self.total + counted.sum()), {}

        def eval_step(self, batch):
            return self, {}

    data = [pad_batch(batch, 8) for batch in batches((X, Y), 8)]
    trained = solstice.train(Counts(np.float32(0)), train_ds=data, callbacks=[])
    assert trained.total == 20


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@settings(max_examples=30)
@given(
    shuffle=st.booleans(), drop_last=st.booleans(), epoch=st.integers(0, 3), index=st.integers(0, 6)
)
def test_a_batch_is_had_without_those_before_it(shuffle, drop_last, epoch, index):
    data = batches((X, Y), 3, shuffle=shuffle, seed=5, drop_last=drop_last)
    data.set_epoch(epoch)
    all_of_them = list(data)
    index %= len(data)
    equal(data[index], all_of_them[index])
    equal(data[index - len(data)], all_of_them[index])
    for beyond in (len(data), -len(data) - 1):
        with pytest.raises(IndexError):
            data[beyond]


@settings(max_examples=30)
@given(shuffle=st.booleans(), epoch=st.integers(0, 3), taken=st.integers(0, 7))
def test_an_iterator_goes_on_where_its_state_was_taken(shuffle, epoch, taken):
    data = batches((X, Y), 3, shuffle=shuffle, seed=5)
    data.set_epoch(epoch)
    iterator = iter(data)
    for _ in range(taken):
        next(iterator)
    state = json.loads(json.dumps(iterator.state_dict()))
    later = iter(batches((X, Y), 3, shuffle=shuffle, seed=5))
    later.load_state_dict(state)
    rest = list(iterator)
    assert len(rest) == 7 - taken
    equal(list(later), rest)


def test_an_iterator_keeps_its_order_when_another_epoch_is_named():
    data = batches(Y, 3, shuffle=True)
    expected = list(data)
    iterator = iter(data)
    first = next(iterator)
    data.set_epoch(4)
    equal([first, *iterator], expected)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 4}, "batch_size"),
        ({"shuffle": False}, "shuffle"),
        ({"drop_last": True}, "drop_last"),
        ({"arrays": Y[:19]}, "examples"),
    ],
)
def test_a_state_of_other_batches_is_refused(changes, name):
    options = {"arrays": Y, "batch_size": 3, "shuffle": True, "seed": 0, "drop_last": False}
    state = iter(batches(**options)).state_dict()
    with pytest.raises(DataError, match=f"the state is of batches with {name}="):
        iter(batches(**{**options, **changes})).load_state_dict(state)


@pytest.mark.parametrize(
    "change",
    [{"batch": 8}, {"batch": -1}, {"epoch": -1}, {"batch": None}, {"epoch": "0"}],
)
def test_a_state_of_no_position_is_refused(change):
    iterator = iter(batches(Y, 3))
    state = {**iterator.state_dict(), **change}
    with pytest.raises(DataError, match="the state is"):
        iterator.load_state_dict(state)
    with pytest.raises(DataError, match="the state is not from"):
        iterator.load_state_dict({})
    assert len(list(iterator)) == 7


def test_a_state_is_plain_numbers_whatever_the_numbers_given():
    data = batches(Y, np.int64(3), seed=np.int64(4), shuffle=np.True_)
    data.set_epoch(np.int64(2))
    state = json.loads(json.dumps(iter(data).state_dict()))
    iter(batches(Y, 3, seed=4, shuffle=True)).load_state_dict(state)


@pytest.mark.parametrize("index", [slice(0, 2), "a", 1.0])
def test_batches_are_taken_one_at_a_time(index):
    with pytest.raises(TypeError, match="batches are taken one at a time"):
        batches(Y, 3)[index]


@pytest.mark.parametrize("seed", [-1, 0.5, None, "a"])
def test_a_seed_is_a_number(seed):
    with pytest.raises(DataError, match="seed must be 0 or more"):
        batches(Y, 3, seed=seed)
