"""Data sets of other libraries are taken up again in the middle of an epoch."""

import numpy as np
import pytest

from solstice._plain import from_plain, to_plain
from solstice._sources import fingerprint, open_source

ROWS = np.arange(23)


def resumed(make, epoch, index):
    """What is left of an epoch that another process takes up after `index` batches."""
    first = open_source(make(), "train_ds")
    first.keep_states(8)
    last = None
    for earlier in range(epoch):
        *_, last = first.epoch(earlier)
    expected, at = [], {}
    for count, batch in enumerate(first.epoch(epoch), 1):
        if count <= index:
            last = batch
        else:
            expected.append(np.asarray(batch).tolist())
        if count == index:
            at = from_plain(to_plain(first.position(index, is_closed=False), "train_ds"))
    assert len(expected) > 0
    second = open_source(make(), "train_ds")
    second.first()  # as setup does
    back = second.seek(epoch, index, at, fingerprint(last))
    assert back.is_same
    return [np.asarray(batch).tolist() for batch in second.epoch(epoch)], expected, back.how


def grain_map():
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(ROWS).seed(3).shuffle().batch(4)


def grain_iter():
    return grain_map().to_iter_dataset()


def grain_loader():
    grain = pytest.importorskip("grain")

    class Rows:
        def __len__(self):
            return len(ROWS)

        def __getitem__(self, index):
            return ROWS[index]

        def __repr__(self):
            return "Rows()"

    return grain.DataLoader(
        data_source=Rows(),
        sampler=grain.samplers.IndexSampler(23, shuffle=True, seed=1, num_epochs=1),
        operations=[grain.transforms.Batch(4)],
    )


@pytest.mark.parametrize("make", [grain_map, grain_iter, grain_loader])
@pytest.mark.parametrize(("epoch", "index"), [(0, 2), (1, 1), (1, 5)])
def test_grain_goes_on_by_its_state(make, epoch, index):
    found, expected, how = resumed(make, epoch, index)
    assert found == expected
    assert how == "exactly, by the state of its iterator"


def test_an_endless_grain_data_set_goes_on_by_its_state():
    make = lambda: iter(grain_map().repeat())  # noqa: E731, an iterator, across all epochs
    source = open_source(make(), "train_ds", limit=4)
    source.keep_states(8)
    epochs = [[np.asarray(b).tolist() for b in source.epoch(e)] for e in range(3)]
    source = open_source(make(), "train_ds", limit=4)
    source.keep_states(8)
    list(source.epoch(0))
    stand = source.position(4, is_closed=True)
    later = open_source(make(), "train_ds", limit=4)
    later.first()
    later.seek(1, 0, stand, None)
    assert [np.asarray(b).tolist() for b in later.epoch(1)] == epochs[1]
    assert [np.asarray(b).tolist() for b in later.epoch(2)] == epochs[2]
