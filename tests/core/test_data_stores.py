"""Batches of mapped files and stores read their own rows, and nothing in proportion to all."""

import mmap
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import DataError
from solstice._sources._source import Source
from solstice.data import _stores

X = np.arange(300, dtype=np.float32).reshape(100, 3)
Y = np.arange(100)
LARGE = 10**10


class Rows:
    """A store of the rows of an array, which counts those that it gives."""

    def __init__(self, array):
        self.array = array
        self.count = 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        found = self.array[rows]
        self.count += len(found)
        return found


class SlicesAlone(Rows):
    def __getitem__(self, rows):
        if not isinstance(rows, slice):
            raise TypeError("rows come by slices")
        return super().__getitem__(rows)


class NumbersAlone(Rows):
    def __getitem__(self, rows):
        if isinstance(rows, slice):
            raise TypeError("rows come by numbers")
        return super().__getitem__(rows)


class Shaped(Rows):
    """As zarr: it has a shape, and no length."""

    __len__ = None

    @property
    def shape(self):
        return self.array.shape


class Increasing(Rows):
    """As h5py: a slice, or the numbers of rows in their order."""

    def __getitem__(self, rows):
        if not isinstance(rows, slice) and np.any(np.diff(rows) <= 0):
            raise TypeError("indices must be in increasing order")
        return super().__getitem__(rows)


class Numbers:
    """A store of very many rows: row i is i."""

    count = 0

    def __init__(self, length=LARGE):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, rows):
        found = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else np.array(rows)
        self.count += len(found)
        return found


class Add(solstice.Experiment):
    """The sum of all rows."""

    total: jax.Array

    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch.sum()), None

    def eval_step(self, batch):
        return self, None


def mapped(folder, array, mode="r"):
    """The array in a mapped file."""
    path = folder / "rows"
    path.write_bytes(array.tobytes())
    return np.memmap(path, array.dtype, mode, shape=array.shape)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for x, y in zip(one, other, strict=True):
            assert type(x) is np.ndarray
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


KINDS = [Rows, SlicesAlone, NumbersAlone, Shaped, Increasing]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("length", [1, 2, 100])
def test_a_store_gives_the_batches_of_its_array(kind, shuffle, length):
    x, y = X[:length], Y[:length]
    options = {"shuffle": shuffle, "seed": 3}
    found = solstice.data.batches((kind(x), y), 7, **options)
    assert_same([*found], [*solstice.data.batches((x, y), 7, **options)])
    assert found.num_examples == length


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_store_has_no_batches(kind):
    assert list(solstice.data.batches(kind(X[:0]), 7, shuffle=True)) == []


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_h5py_dataset_is_read_by_rows(tmp_path, shuffle):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["x"] = X.astype(">f4")
        data = solstice.data.batches((file["x"], Y), 7, shuffle=shuffle, seed=3)
        expected = solstice.data.batches((X, Y), 7, shuffle=shuffle, seed=3)
        assert data.has_stores
        assert_same([*data], [*expected])


def test_pandas_is_read_by_place_and_not_by_label():
    pandas = pytest.importorskip("pandas")
    labels = pandas.Series(Y, index=Y[::-1])
    data = solstice.data.batches((X, labels), 7, shuffle=True, seed=3)
    assert_same([*data], [*solstice.data.batches((X, Y), 7, shuffle=True, seed=3)])


@pytest.mark.parametrize(
    "given",
    [
        type("Pairs", (Rows,), {"__getitem__": lambda self, rows: (X[rows], X[rows])})(X),
        type("Items", (Rows,), {"__getitem__": lambda self, row: X[int(row)]})(X),
        type("Names", (Rows,), {"__getitem__": lambda self, name: {"x": X}[name]})(X),
        "some text",
        b"bytes",
        3.0,
        np.float32(3),
    ],
    ids=["pairs", "items", "names", "text", "bytes", "number", "NumPy number"],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_what_gives_no_rows_is_refused(given, shuffle):
    with pytest.raises(DataError, match="expected arrays with the examples along axis 0"):
        solstice.data.batches((given, Y), 7, shuffle=shuffle)


def test_a_store_that_gives_other_rows_than_asked_for_is_named():
    class Short(Rows):
        def __len__(self):
            return 101

    data = solstice.data.batches((Short(X), np.arange(101)), 7)
    with pytest.raises(DataError, match=r"a .*Short among the arrays gave .*\[2, 3\] for 3 rows"):
        list(data)


def test_an_error_of_the_disk_is_not_hidden():
    class Gone(Rows):
        def __getitem__(self, rows):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        solstice.data.batches((Gone(X), Y), 7)


def test_arrays_of_other_lengths_than_a_store_are_refused():
    with pytest.raises(DataError, match=r"the lengths are \[100, 99\]"):
        solstice.data.batches((Rows(X), Y[:99]), 7)


def test_an_error_of_fit_has_the_line_that_reads_a_store():
    line = r"`train_ds=solstice\.data\.batches\(train_ds, 7, shuffle=True\)`"
    with pytest.raises(DataError, match=line):
        solstice.Trainer().fit(Add(jnp.float32(0)), Rows(X), batch_size=7)


# Nothing in proportion to the number of rows


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_of_very_many_rows_read_their_own(shuffle):
    store = Numbers()
    data = solstice.data.batches(store, 32, shuffle=shuffle, seed=1)
    assert "10,000,000,000 examples" in repr(data)
    made = store.count
    assert made <= 4  # to see what a row is
    iterator = iter(data)
    first = next(iterator)
    iterator.load_state_dict({**iterator.state_dict(), "epoch": 7, "batch": len(data) // 2})
    middle = [next(iterator) for _ in range(3)]
    assert store.count == made + 4 * 32
    data.set_epoch(7)
    for index, batch in enumerate(middle, len(data) // 2):
        np.testing.assert_array_equal(data[index], batch)
    assert first.dtype == np.int64
    assert len({*np.concatenate([first, *middle]).tolist()}) == 4 * 32
    if shuffle:
        assert max(*first, *middle[0]) > 2**32
    else:
        assert middle[0].tolist() == list(range(LARGE // 2, LARGE // 2 + 32))


def test_a_run_over_very_many_rows_resumes_at_once(tmp_path):
    def run(store, max_steps, folder, **options):
        data = solstice.data.batches(store, 8, shuffle=True, seed=1)
        trainer = solstice.Trainer([solstice.callbacks.Checkpoint(tmp_path / folder, every=5)])
        return trainer.fit(Add(jnp.int32(0)), data, num_epochs=None, max_steps=max_steps, **options)

    whole = run(Numbers(), 10, "whole")
    run(Numbers(), 5, "parts")
    store = Numbers()
    resumed = run(store, 10, "parts", resume="last", strict_resume=True)
    assert resumed.total == whole.total
    assert store.count < 300


def test_other_rows_in_a_store_are_noticed(tmp_path):
    def identity(array, **options):
        return Source(solstice.data.batches(array, 8, **options), "train_ds").identity

    checksums = [
        identity(array)["checksum"]
        for array in [Rows(X), Rows(X.copy()), Rows(X + 1), Rows(X[:, :2]), Rows(X.astype(int))]
    ]
    assert checksums[0] == checksums[1]
    assert len({*checksums}) == 4
    assert identity(Rows(X))["kind"] != identity(X)["kind"]  # a run may continue with either


def test_a_sample_of_large_rows_is_small():
    rows = Rows(np.broadcast_to(np.float32(1), (1000, 2**18)))
    assert len(solstice.data.batches(rows, 8).sample()) == 4
    few = Rows(np.arange(3))
    assert solstice.data.batches(few, 8).sample().tolist() == [0, 1, 2]


# Mapped files


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr(_stores, "_LARGE", 0)
    monkeypatch.setattr(_stores, "_MAPPED", 0)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("view", [lambda x: x, np.asarray, lambda x: x[20:], lambda x: x[:, ::2]])
@pytest.mark.usefixtures("all_are_large")
def test_a_large_mapped_file_gives_the_batches_of_its_array(tmp_path, mode, shuffle, view):
    given = view(mapped(tmp_path, X, mode))
    rest = Y[: len(given)]
    data = solstice.data.batches((given, rest), 7, shuffle=shuffle, seed=3)
    assert data.has_stores
    expected = solstice.data.batches((view(X), rest), 7, shuffle=shuffle, seed=3)
    assert_same([*data], [*expected])


@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.usefixtures("all_are_large")
def test_what_was_written_into_a_mapped_file_stays(tmp_path, mode):
    given = mapped(tmp_path, X, mode)
    given[:] = X + 1
    data = solstice.data.batches((given, Y), 7, shuffle=True)
    for _ in range(2):
        assert_same([*data], [*solstice.data.batches((X + 1, Y), 7, shuffle=True)])


def pages_of(start, length):
    """The pages of a file that a range of its bytes is in."""
    return range(start // mmap.PAGESIZE, -(-(start + length) // mmap.PAGESIZE))


@pytest.mark.parametrize("offset", [0, 12, 3 * mmap.ALLOCATIONGRANULARITY + 100])
@pytest.mark.parametrize("view", [slice(None), slice(5, None), slice(None, None, -2)])
@pytest.mark.usefixtures("all_are_large")
def test_the_system_is_asked_for_the_pages_of_the_rows(tmp_path, monkeypatch, offset, view):
    asked, row_bytes = [], 3000

    class Spy(mmap.mmap):
        def madvise(self, option, *given):
            super().madvise(option, *given)
            if option == mmap.MADV_WILLNEED:
                asked.append(given)

    (tmp_path / "rows").write_bytes(bytes(offset + 100 * row_bytes))
    monkeypatch.setattr(mmap, "mmap", Spy)
    rows = np.memmap(tmp_path / "rows", np.uint8, "r", offset, (100, row_bytes))[view]
    data = solstice.data.batches(rows, 7, shuffle=True, seed=3)
    list(data)
    before = offset - offset % mmap.ALLOCATIONGRANULARITY  # not in the mapping
    found = [[*pages_of(before + start, length)] for start, length in asked]
    places = np.arange(100)[view][data.order]
    assert found == [[*pages_of(offset + row * row_bytes, row_bytes)] for row in places.tolist()]


def test_a_small_mapped_file_is_an_array(tmp_path):
    data = solstice.data.batches(mapped(tmp_path, X), 7)
    assert not data.has_stores
    assert isinstance(data[0].base, np.ndarray | mmap.mmap)  # a view, without a copy


def test_a_mapped_file_in_another_byte_order_is_converted_by_batches(tmp_path):
    given = mapped(tmp_path, X.astype(">f4"))
    data = solstice.data.batches((given, Y), 7, shuffle=True, seed=3)
    assert data.has_stores
    assert_same([*data], [*solstice.data.batches((X, Y), 7, shuffle=True, seed=3)])


@pytest.mark.usefixtures("all_are_large")
def test_batches_of_a_mapped_file_can_be_pickled(tmp_path):
    data = solstice.data.batches((mapped(tmp_path, X), Y), 7, shuffle=True, seed=3)
    assert_same([*pickle.loads(pickle.dumps(data))], [*data])


# On the device


def test_stores_stay_on_the_host_unless_asked_for():
    data = solstice.data.batches(Rows(X), 7, on_device=None)
    assert not data.is_resident
    assert "when a batch needs them" in data.why_on_host


def test_a_store_goes_to_the_device_if_asked_for():
    options = {"shuffle": True, "seed": 3}
    trained = [
        solstice.Trainer().fit(
            Add(jnp.float32(0)), solstice.data.batches(given, 7, **options, on_device=on_device)
        )
        for given, on_device in [(X, False), (Rows(X), True)]
    ]
    assert trained[0].total == trained[1].total
    data = solstice.data.batches((Rows(X), Y), 7, **options, on_device=True)
    assert_same([*data], [*solstice.data.batches((X, Y), 7, **options)])


# A part of each batch


def share(process, count):
    """The rows of a batch for one of `count` processes: equal parts, or one more for the first."""

    def part(size):
        least, rest = divmod(size, count)
        start = process * least + min(process, rest)
        return slice(start, start + least + (process < rest))

    return part


@settings(max_examples=60, deadline=None)
@given(
    count=st.sampled_from([1, 2, 7]),
    length=st.sampled_from([1, 20, 64, LARGE]),
    batch_size=st.integers(1, 33),
    shuffle=st.booleans(),
    epoch=st.integers(0, 9),
    start=st.floats(0, 1),
)
def test_parts_of_batches_on_any_number_of_processes_are_the_whole(
    count, length, batch_size, shuffle, epoch, start
):
    def read(part):
        store = Numbers(length)
        data = solstice.data.batches(store, batch_size, shuffle=shuffle, seed=2)
        iterator = iter(data if part is None else data.only(part))
        at = {"epoch": epoch, "batch": int(start * max(len(data) - 3, 0))}
        iterator.load_state_dict({**iterator.state_dict(), **at})
        made = store.count
        found = [batch for _, batch in zip(range(4), iterator, strict=False)]
        assert store.count - made == sum(map(len, found))  # it reads no other rows
        return found

    whole = read(None)
    parts = [read(share(process, count)) for process in range(count)]
    joined = [np.concatenate(batch).tolist() for batch in zip(*parts, strict=True)]
    assert joined == [batch.tolist() for batch in whole]


def test_a_part_leaves_the_batches_that_it_is_of():
    data = solstice.data.batches(Y, 7, shuffle=True)
    half = data.only(share(0, 2))
    half.set_epoch(3)
    assert (len(half), half.describe()) == (len(data), data.describe())
    assert data.epoch == 0
    assert len(data[0]) == 7
    assert len(half[0]) == 4
    assert half.only(slice)[0].tolist() == half._order.rows(3, 0, 7).tolist()


@pytest.mark.parametrize("on_device", [True, False, None])
def test_a_run_trains_on_a_part_alone(on_device):
    data = solstice.data.batches(Y, 7, shuffle=True, on_device=on_device)
    halves = [
        solstice.Trainer().fit(Add(jnp.int32(0)), data.only(share(process, 2))).total
        for process in (0, 1)
    ]
    assert sum(halves) == Y.sum()
    assert 0 < halves[0] < Y.sum()


@pytest.mark.parametrize("part", [lambda size: slice(None, None, 2), lambda size: slice(3, 1, -1)])
def test_a_part_with_a_step_is_refused(part):
    with pytest.raises(DataError, match="a slice without a step"):
        solstice.data.batches(Y, 7).only(part)[0]


def test_a_part_must_be_a_function():
    with pytest.raises(TypeError, match="part must be a function"):
        solstice.data.batches(Y, 7).only(slice(0, 2))


def test_passes_in_several_threads_read_the_same():
    data = solstice.data.batches(Numbers(), 32, shuffle=True, seed=1)
    expected, found = [data[index] for index in range(300)], {}

    def read(name):
        found[name] = [batch for _, batch in zip(range(300), iter(data), strict=False)]

    threads = [threading.Thread(target=read, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for batches in found.values():
        np.testing.assert_array_equal(batches, expected)
