"""What a data set may be, how arrays are cut into batches, and what each bad one is told."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import DataError


class Null(solstice.Experiment):
    """Takes any batch and does nothing with it."""

    def train_step(self, batch):
        return self, None

    def eval_step(self, batch):
        return self, None


class Seen(solstice.Callback):
    """Keeps every batch, by epoch."""

    needs = ("batch",)

    def __init__(self):
        self.epochs = {}

    def on_step_end(self, record):
        self.epochs.setdefault(record.epoch, []).append(record.batch)


def batches_of(train_ds, num_epochs=1, *, limit=None, **options):
    """The batches that a run over `train_ds` trained on, a list for each epoch."""
    seen = Seen()
    trainer = solstice.Trainer([seen], limit_train_batches=limit)
    trainer.fit(Null(), train_ds, num_epochs=num_epochs, **options)
    return list(seen.epochs.values())


def numbers(epochs):
    """The same with each batch as a list."""
    return [[np.asarray(batch).tolist() for batch in epoch] for epoch in epochs]


def some(*values):
    """A batch of two examples for each value."""
    return [np.full(2, value, np.float32) for value in values]


THREE = [[0, 0], [1, 1], [2, 2]]


class Tensor:
    """A tensor of some library, which NumPy can read and which is no NumPy array."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, np.float32 if dtype is None else dtype)


class ArrayTensor(Tensor):
    """A tensor that says its shape too."""

    shape = (4,)
    dtype = "float of another library"


class RandomAccess:
    """No iterable: only a length and items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Again:
    """An iterable that can be iterated again, without a length."""

    def __iter__(self):
        return iter(some(0, 1, 2))


class OneShot:
    """An iterator that is no generator: what it gave is gone."""

    def __init__(self, items):
        self.rest = list(items)

    def __iter__(self):
        return self

    def __next__(self):
        if not self.rest:
            raise StopIteration
        return self.rest.pop(0)


def generator_function():
    yield from some(0, 1, 2)


@pytest.mark.parametrize(
    "train_ds",
    [
        some(0, 1, 2),
        [jnp.asarray(batch) for batch in some(0, 1, 2)],
        RandomAccess(some(0, 1, 2)),
        Again(),
        generator_function,
        lambda: iter(some(0, 1, 2)),
        lambda epoch: some(0, 1, 2),
        [Tensor([i, i]) for i in range(3)],
        [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]],
    ],
    ids=[
        "list",
        "jax",
        "random access",
        "iterable",
        "generator function",
        "function",
        "function of the epoch",
        "tensors",
        "numbers",
    ],
)
def test_a_data_set_that_can_be_read_again_gives_its_batches_in_each_epoch(train_ds):
    assert numbers(batches_of(train_ds, num_epochs=2)) == [THREE, THREE]


@pytest.mark.parametrize("make", [generator_function, lambda: OneShot(some(0, 1, 2))])
def test_a_one_shot_iterator_serves_for_one_epoch(make):
    assert numbers(batches_of(make())) == [THREE]


def test_a_tuple_of_batches_is_a_list_of_batches():
    batches = tuple((batch, batch) for batch in some(0, 1, 2))
    epochs = batches_of(batches, num_epochs=2)
    assert [[x.tolist() for x, _ in epoch] for epoch in epochs] == [THREE, THREE]


def test_a_factory_is_given_the_index_of_the_epoch():
    assert numbers(batches_of(lambda epoch: some(10 * epoch, 10 * epoch + 1), 3)) == [
        [[10 * e, 10 * e], [10 * e + 1, 10 * e + 1]] for e in range(3)
    ]


def test_a_factory_of_validation_batches_is_given_the_index_of_the_epoch():
    given_to_it = []

    def val_ds(epoch):
        given_to_it.append(epoch)
        return some(0)

    solstice.Trainer().fit(Null(), some(0), val_ds, num_epochs=3)
    assert given_to_it == [0, 1, 2]


def test_a_factory_is_called_once_an_epoch():
    calls = []
    batches_of(lambda: calls.append(1) or some(0), num_epochs=4)
    assert len(calls) == 4


def test_a_default_that_a_function_closes_over_is_not_taken_for_the_epoch():
    batches = some(7)
    assert numbers(batches_of(lambda data=batches: data, num_epochs=2)) == [[[7, 7]]] * 2


def test_set_epoch_names_each_epoch():
    class Sampled(Again):
        def __init__(self):
            self.named = []

        def set_epoch(self, epoch):
            self.named.append(epoch)

    train_ds = Sampled()
    batches_of(train_ds, num_epochs=3)
    assert train_ds.named == [0, 1, 2]


def test_dict_batches_keep_their_names():
    ((batch,),) = batches_of([{"x": np.ones((2, 3)), "y": Tensor([1, 2])}])
    assert batch.keys() == {"x", "y"}
    assert batch["x"].shape == (2, 3)
    assert isinstance(batch["y"], np.ndarray)
    assert batch["y"].tolist() == [1, 2]


def test_strings_reach_callbacks_and_never_the_step():
    class Numbers(Null):
        total: jax.Array

        def train_step(self, batch):
            assert batch["id"] is None
            assert batch["names"] is None
            return solstice.replace(self, total=self.total + jnp.sum(batch["x"])), None

    seen = Seen()
    batch = {"id": "first", "names": np.array(["a", "b"]), "x": np.ones(2, np.float32)}
    trained = solstice.Trainer([seen]).fit(Numbers(jnp.zeros(())), [batch])
    assert trained.total == 2
    ((kept,),) = seen.epochs.values()
    assert kept["id"] == "first"
    assert kept["names"].tolist() == ["a", "b"]


def test_a_grain_map_dataset_works_and_has_its_length():
    grain = pytest.importorskip("grain")
    dataset = grain.MapDataset.range(6).batch(2)
    assert numbers(batches_of(dataset, num_epochs=2)) == [[[0, 1], [2, 3], [4, 5]]] * 2


def test_a_repeated_grain_data_set_is_endless():
    grain = pytest.importorskip("grain")
    dataset = grain.MapDataset.range(4).batch(2).repeat()
    assert numbers(batches_of(dataset, None, max_steps=3)) == [[[0, 1], [2, 3], [0, 1]]]


class Lengths(solstice.Callback):
    def __init__(self):
        self.lengths = []

    def on_epoch_start(self, record):
        self.lengths.append(record.steps_per_epoch)


@pytest.mark.parametrize(
    ("train_ds", "limit", "expected"),
    [
        (some(0, 1, 2), None, 3),
        (some(0, 1, 2), 2, 2),
        (some(0, 1, 2), 9, 3),
        (RandomAccess(some(0, 1)), None, 2),
        (solstice.data.batches(np.zeros(5), 2), None, 3),
        (generator_function, None, None),
        (Again(), None, None),
    ],
)
def test_callbacks_are_told_how_many_steps_there_will_be(train_ds, limit, expected):
    lengths = Lengths()
    solstice.Trainer([lengths], limit_train_batches=limit).fit(Null(), train_ds)
    assert lengths.lengths == [expected]


def endless():
    for value in itertools.count():
        yield np.full(2, value, np.float32)


def first_values(epochs):
    return [[int(batch[0]) for batch in epoch] for epoch in epochs]


@settings(max_examples=15, deadline=None)
@given(limit=st.integers(1, 4), num_epochs=st.integers(1, 4))
def test_limited_epochs_of_an_endless_iterator_lose_and_repeat_no_batch(limit, num_epochs):
    iterator = endless()
    epochs = batches_of(iterator, num_epochs, limit=limit)
    assert first_values(epochs) == np.arange(limit * num_epochs).reshape(-1, limit).tolist()
    assert next(iterator)[0] == limit * num_epochs


@settings(max_examples=15, deadline=None)
@given(max_steps=st.integers(1, 9))
def test_max_steps_of_an_endless_iterator_reads_so_many_batches(max_steps):
    iterator = endless()
    assert first_values(batches_of(iterator, None, max_steps=max_steps)) == [list(range(max_steps))]
    assert next(iterator)[0] == max_steps


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 4), max_steps=st.integers(1, 9))
def test_max_steps_reads_a_short_data_set_again(length, max_steps):
    epochs = batches_of(some(*range(length)), None, max_steps=max_steps)
    steps = [i % length for i in range(max_steps)]
    assert first_values(epochs) == [steps[i : i + length] for i in range(0, max_steps, length)]


def test_limit_val_batches_bounds_an_endless_validation_set():
    class Steps(solstice.Callback):
        val = 0

        def on_step_end(self, record):
            self.val += record.mode == "val"

    steps = Steps()
    solstice.Trainer([steps], limit_val_batches=3).fit(Null(), some(0), endless(), num_epochs=2)
    assert steps.val == 6


# Arrays, cut into batches


def tree(length):
    """Arrays of one length, whose values say which example they are of."""
    index = np.arange(length)
    return {"index": index, "pair": (np.stack([index, -index], axis=1), index.astype(np.float32))}


shapes = {"length": st.integers(1, 40), "batch_size": st.integers(1, 12)}
orders = {"seed": st.integers(0, 2**31), "epoch": st.integers(0, 5)}


@settings(max_examples=100, deadline=None)
@given(**shapes, **orders, shuffle=st.booleans(), drop_last=st.booleans())
def test_every_example_comes_exactly_once_with_all_its_parts(
    length, batch_size, seed, epoch, shuffle, drop_last
):
    data = solstice.data.batches(
        tree(length), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last
    )
    data.set_epoch(epoch)
    found = list(data)
    rest = length % batch_size
    sizes = [batch_size] * (length // batch_size) + ([rest] if rest and not drop_last else [])
    assert [len(batch["index"]) for batch in found] == sizes
    assert len(data) == len(sizes)
    indices = np.concatenate([[], *(batch["index"] for batch in found)]).astype(int)
    assert len(set(indices)) == len(indices) == sum(sizes)
    assert set(indices) <= set(range(length))
    if not shuffle:
        assert indices.tolist() == list(range(sum(sizes)))
    for batch in found:
        pair, number = batch["pair"]
        np.testing.assert_array_equal(pair, np.stack([batch["index"], -batch["index"]], axis=1))
        np.testing.assert_array_equal(number, batch["index"])


def order_of(seed, epoch, *, length=30):
    data = solstice.data.batches(np.arange(length), 7, shuffle=True, seed=seed)
    data.set_epoch(epoch)
    return np.concatenate(list(data)).tolist()


@settings(max_examples=30, deadline=None)
@given(**orders)
def test_the_order_depends_on_seed_and_epoch_alone(seed, epoch):
    order = order_of(seed, epoch)
    assert order_of(seed, epoch) == order
    assert order_of(seed, epoch + 1) != order
    assert order_of(seed + 1, epoch) != order
    assert order_of(seed + 1, epoch) != order_of(seed, epoch + 1)
    assert order != sorted(order)


def test_a_pass_changes_nothing_for_the_next_pass():
    data = solstice.data.batches(np.arange(30), 7, shuffle=True)
    first = [batch.tolist() for batch in data]
    assert [batch.tolist() for batch in data] == first


def test_two_passes_at_once_do_not_disturb_each_other():
    data = solstice.data.batches(np.arange(30), 7, shuffle=True)
    for one, other in zip(data, data, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_trainer_names_the_epochs_of_batches():
    data = solstice.data.batches(np.arange(30), 7, shuffle=True, seed=3)
    for epoch, found in enumerate(batches_of(data, num_epochs=3)):
        assert np.concatenate(found).tolist() == order_of(3, epoch)


def test_arrays_are_not_changed_and_batches_are_no_views_of_a_shuffle():
    array = np.arange(6.0)
    for batch in solstice.data.batches(array, 2, shuffle=True):
        batch[:] = -1
    assert array.tolist() == list(range(6))


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40),
    size=st.integers(1, 50),
    part=st.sampled_from([None, lambda n: slice(n // 2), lambda n: slice(n // 2, n)]),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    **orders,
)
def test_indices_are_the_rows_of_each_batch(length, size, part, shuffle, drop_last, seed, epoch):
    x = np.random.default_rng(0).normal(size=length)
    data = solstice.data.batches(x, size, shuffle=shuffle, seed=seed, drop_last=drop_last)
    data = data if part is None else data.only(part)
    found = [data.indices(epoch, index) for index in range(len(data))]
    assert data.epoch == 0
    data.set_epoch(epoch)
    for index, rows in enumerate(found):
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(x[rows], data[index])
        np.testing.assert_array_equal(data.indices(epoch, index - len(data)), rows)
    with pytest.raises(IndexError, match=f"batch {len(data)} of {len(data)}"):
        data.indices(epoch, len(data))


@pytest.mark.parametrize("length", [30, 2**20 + 1])
def test_indices_belong_to_the_caller(length):
    data = solstice.data.batches(np.arange(length), 8, shuffle=True)
    expected = data[2].tolist()
    data.indices(0, 2)[:] = -1
    assert data.indices(0, 2).tolist() == data[2].tolist() == expected


def test_the_trainer_reads_the_rows_of_indices():
    data = solstice.data.batches(np.arange(30), 7, shuffle=True, seed=3)
    for epoch, found in enumerate(batches_of(data, num_epochs=3, limit=2)):
        assert [b.tolist() for b in found] == [data.indices(epoch, i).tolist() for i in range(2)]


def test_indices_of_batches_that_a_class_changes_are_refused():
    class Reversed(solstice.data.Batches):
        def __getitem__(self, index):
            return super().__getitem__(index)[::-1]

    class Named(solstice.data.Batches):
        name = "digits"

    assert Named(np.arange(3), 2).indices(0, 1).tolist() == [2]
    with pytest.raises(DataError, match=r"write `def indices\(self, epoch, batch\):` in Reversed"):
        Reversed(np.arange(3), 2).indices(0, 1)


@pytest.mark.parametrize("epoch", [-1, 0.5, True, None])
def test_an_epoch_of_indices_is_a_whole_number(epoch):
    with pytest.raises(ValueError, match="epoch must be 0 or more"):
        solstice.data.batches(np.arange(3), 2).indices(epoch, 0)


def test_batches_say_what_they_are():
    data = solstice.data.batches(np.zeros(1234), 32, shuffle=True, seed=5)
    assert "1,234 examples, batch_size=32, shuffle=True, seed=5" in repr(data)


@pytest.mark.parametrize(
    "arrays",
    [
        np.arange(4, dtype=np.float32),
        jnp.arange(4, dtype=jnp.float32),
        ArrayTensor([0, 1, 2, 3]),
        (np.arange(4), jnp.arange(4)),
        [np.arange(4), np.arange(4)],
        {"x": np.arange(4), "y": np.arange(4)},
        ({"image": np.arange(4), "mask": np.arange(4)}, np.arange(4)),
        {"inputs": {"image": np.arange(4)}, "label": np.arange(4)},
    ],
    ids=["array", "jax", "tensor", "tuple", "list", "dict", "dict in tuple", "dict in dict"],
)
def test_a_tree_of_arrays_with_a_batch_size_is_shuffled_for_each_epoch(arrays):
    epochs = batches_of(arrays, num_epochs=4, batch_size=2)
    orders = [np.concatenate([jax.tree.leaves(b)[0] for b in epoch]).tolist() for epoch in epochs]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert jax.tree.structure(epochs[0][0]) == jax.tree.structure(arrays)


def test_arrays_to_evaluate_on_keep_their_order():
    seen = Seen()
    solstice.Trainer([seen]).test(Null(), np.arange(5), batch_size=2)
    assert numbers(seen.epochs.values()) == [[[0, 1], [2, 3], [4]]]


# Errors


def empty_generator():
    yield from ()


@pytest.mark.parametrize(
    "empty",
    [[], (), empty_generator, empty_generator(), list, np.zeros((0, 3)), RandomAccess([])],
    ids=["list", "tuple", "function", "generator", "class", "array", "random access"],
)
def test_an_empty_data_set_is_named(empty):
    size = 2 if isinstance(empty, np.ndarray) else None
    with pytest.raises(DataError, match="train_ds is empty"):
        solstice.Trainer().fit(Null(), empty, batch_size=size)


@pytest.mark.parametrize(("method", "name"), [("test", "test_ds"), ("validate", "val_ds")])
def test_an_empty_data_set_to_evaluate_on_is_named(method, name):
    with pytest.raises(DataError, match=f"{name} is empty"):
        getattr(solstice.Trainer(), method)(Null(), [])


def test_an_empty_data_set_to_predict_on_is_named():
    predictions = solstice.Trainer().predict(Null(), [])
    with pytest.raises(DataError, match="ds is empty"):
        next(predictions)


def test_an_empty_validation_set_is_told_before_anything_trains():
    seen = Seen()
    with pytest.raises(DataError, match="val_ds is empty"):
        solstice.Trainer([seen]).fit(Null(), some(0), [])
    assert seen.epochs == {}


@pytest.mark.parametrize("name", ["train_ds", "val_ds"])
def test_a_generator_for_two_epochs_is_refused_before_anything_trains(name):
    seen = Seen()
    data = {"train_ds": some(0), name: generator_function()}
    with pytest.raises(DataError, match=f"{name} is a generator.*num_epochs=2") as error:
        solstice.Trainer([seen]).fit(Null(), **data, num_epochs=2)
    assert f"`{name}=my_generator` without the call" in str(error.value)
    assert seen.epochs == {}


@pytest.mark.parametrize("name", ["train_ds", "val_ds"])
def test_a_one_shot_iterator_is_named_at_its_second_epoch(name):
    seen = Seen()
    data = {"train_ds": some(0), name: OneShot(some(0, 1))}
    with pytest.raises(DataError, match=f"{name} is a one-shot iterator.*pass 2") as error:
        solstice.Trainer([seen]).fit(Null(), **data, num_epochs=2)
    assert f"`{name}=lambda: my_generator()`" in str(error.value)
    assert len(seen.epochs[0]) == (2 if name == "train_ds" else 3)


def test_a_generator_that_ends_before_max_steps_is_a_one_shot_iterator():
    with pytest.raises(DataError, match="train_ds is a one-shot iterator"):
        batches_of(generator_function(), None, max_steps=5)


def test_a_function_whose_second_generator_is_empty_is_not_told_to_be_a_function():
    with pytest.raises(DataError) as error:
        batches_of(lambda epoch: iter(some(0)) if epoch == 0 else iter([]), num_epochs=2)
    assert "train_ds is empty" in str(error.value)


@pytest.mark.parametrize(
    "arrays",
    [
        np.zeros((4, 2)),
        jnp.zeros(4),
        (np.zeros(4), np.zeros(4)),
        {"x": np.zeros(4), "y": np.zeros(4)},
        {"inputs": {"image": np.zeros(4)}, "label": np.zeros(4)},
    ],
    ids=["array", "jax", "tuple", "dict", "dict in dict"],
)
def test_bare_arrays_are_told_to_say_how_many_make_a_batch(arrays):
    with pytest.raises(DataError, match=r"train_ds is .*: examples, not batches") as error:
        batches_of(arrays)
    assert "`batch_size=32`" in str(error.value)
    assert "solstice.data.batches(train_ds, 32, shuffle=True)" in str(error.value)


def test_shuffling_is_advised_for_training_alone():
    with pytest.raises(DataError) as error:
        solstice.Trainer().test(Null(), np.zeros(4))
    assert "`test_ds=solstice.data.batches(test_ds, 32)`" in str(error.value)
    with pytest.raises(DataError) as error:
        list(solstice.Trainer().predict(Null(), np.zeros(4)))
    assert "32)`" in str(error.value)
    assert "shuffle" not in str(error.value)


@pytest.mark.parametrize(
    "data", [Again(), generator_function, [(np.zeros(2), "name")], [(np.zeros(8), np.zeros(8))]]
)
def test_a_batch_size_for_data_that_come_in_batches_is_refused(data):
    with pytest.raises(DataError, match=r"batch_size=2 was given, and train_ds .*leave batch_size"):
        batches_of(data, batch_size=2)


def test_an_iterator_that_was_read_before_is_told():
    read = iter([np.zeros(2)])
    next(read)
    with pytest.raises(DataError, match=r"it gave no batch\. It is an iterator.*read before"):
        batches_of(read)


def test_a_batch_size_is_refused_for_the_data_set_that_comes_in_batches():
    with pytest.raises(DataError, match="batch_size=2 was given, and val_ds"):
        solstice.Trainer().fit(Null(), np.zeros(4), Again(), batch_size=2)


@pytest.mark.parametrize("batch_size", [0, -1, True, 2.5])
def test_a_batch_size_that_is_no_count_is_refused(batch_size):
    with pytest.raises((DataError, TypeError), match=rf"batch_size .*{batch_size!r}"):
        solstice.data.batches(np.zeros(4), batch_size)


def test_a_batch_size_of_zero_is_refused_by_fit():
    with pytest.raises(DataError, match="batch_size must be 1 or more examples; it is 0"):
        batches_of(np.zeros(4), batch_size=0)


@pytest.mark.parametrize(
    "arrays", [(np.zeros(4), np.zeros(5)), {"x": np.zeros(4), "y": np.ones(5)}]
)
def test_arrays_of_unequal_lengths_are_refused(arrays):
    with pytest.raises(DataError, match=r"one length on axis 0; the lengths are \[4, 5\]"):
        batches_of(arrays, batch_size=2)


@pytest.mark.parametrize("arrays", ["text", 3.0, np.float32(1), (np.zeros(3), np.float32(1))])
def test_batches_of_what_has_no_axis_0_are_refused(arrays):
    with pytest.raises(DataError, match=r"examples along axis 0, as in `batches\(\(images"):
        solstice.data.batches(arrays, 2)


def test_batches_of_no_array_are_refused():
    with pytest.raises(DataError):
        solstice.data.batches({}, 2)


@pytest.mark.parametrize("data", [3, None, object()])
def test_what_is_no_data_set_is_told_what_is_one(data):
    with pytest.raises(DataError, match=r"train_ds must be an iterable of batches \(a list"):
        batches_of(data)


def test_a_leaf_that_is_no_array_is_named_by_its_type():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("it is on another device")

    with pytest.raises(DataError, match=r"Broken in a batch of train_ds .*on another device"):
        batches_of([Broken()])


def test_an_error_in_the_data_set_comes_out_as_it_is():
    def broken():
        yield from some(0)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        batches_of(broken)


@pytest.mark.parametrize("name", ["num_epochs", "max_steps"])
@pytest.mark.parametrize("value", [0, -1, True])
def test_a_bound_below_one_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be 1 or more; it is {value}"):
        solstice.Trainer().fit(Null(), some(0), **{name: value})


@pytest.mark.parametrize("name", ["limit_train_batches", "limit_val_batches"])
def test_a_limit_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be 1 or more; it is 0"):
        solstice.Trainer(**{name: 0})


@settings(max_examples=10, deadline=None)
@given(length=st.integers(1, 9), batch_size=st.integers(1, 4))
def test_arrays_give_as_many_steps_as_their_batches(length, batch_size):
    (epoch,) = batches_of(np.zeros(length, np.float32), batch_size=batch_size)
    assert len(epoch) == math.ceil(length / batch_size)


@pytest.mark.parametrize(
    ("mask", "line"),
    [
        ([True, False, False, False], r"`solstice\.data\.Masked\(batch, ~x\.mask\)`"),
        ([[False, True]] * 4, r"`solstice\.data\.Masked\(batch, ~x\.mask\.any\(axis=\(1,\)\)\)`"),
    ],
)
@pytest.mark.parametrize("as_arrays", [True, False])
def test_masked_entries_of_numpy_are_refused(mask, line, as_arrays):
    masked = np.ma.masked_array(np.zeros(np.shape(mask), np.float32), mask)
    data, size = (masked, 2) if as_arrays else ([masked], None)
    with pytest.raises(DataError, match=line):
        solstice.Trainer().fit(Null(), data, batch_size=size)


def test_a_masked_array_without_masked_entries_is_an_array():
    numbers = np.arange(4, dtype=np.float32)
    [[batch]] = batches_of([np.ma.masked_array(numbers, mask=False)])
    assert type(batch) is np.ndarray
    assert batch.tolist() == numbers.tolist()
