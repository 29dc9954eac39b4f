"""Hugging Face datasets: a data set of examples becomes batches, without our importing it."""

import equinox as eqx
import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

import solstice
from solstice._sources import fingerprint, open_source
from solstice._sources._libraries import library_of
from solstice.testing import Sgd

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("default")


def digits():
    x, y = load_digits(return_X_y=True)
    return datasets.Dataset.from_dict({"image": (x / 16).astype(np.float32), "label": y})


class Classifier(solstice.Experiment):
    """Counts what it sees, by name."""

    seen: jax.Array

    def train_step(self, batch):
        return solstice.replace(self, seen=self.seen + batch["label"].shape[0]), {}

    def eval_step(self, batch):
        return self, {"label": batch["label"].mean()}


def test_rows_come_in_batches_of_arrays_and_each_once():
    source = open_source(digits(), "train_ds", 32, shuffle=True)
    assert source.length == 57
    first, second = list(source.epoch(0)), list(source.epoch(1))
    assert first[0]["image"].dtype == np.float32
    assert first[0]["image"].shape == (32, 64)
    assert first[-1]["label"].shape == (5,)
    labels = [np.concatenate([batch["label"] for batch in epoch]) for epoch in (first, second)]
    assert np.any(labels[0] != labels[1])
    np.testing.assert_array_equal(np.bincount(labels[0]), np.bincount(labels[1]))
    again = np.concatenate([batch["label"] for batch in source.epoch(0)])
    np.testing.assert_array_equal(again, labels[0])


def test_evaluation_is_in_the_order_given():
    source = open_source(digits(), "test_ds", 100)
    labels = np.concatenate([batch["label"] for batch in source.epoch(0)])
    np.testing.assert_array_equal(labels, load_digits(return_X_y=True)[1])


@pytest.mark.parametrize("streams", [False, True])
def test_it_trains(streams):
    data = digits().to_iterable_dataset() if streams else digits()
    exp = Classifier(np.float32(0))
    exp = solstice.train(exp, train_ds=data, batch_size=32, num_epochs=2, callbacks=[])
    assert exp.seen == 2 * 1797
    found = solstice.test(exp, data, batch_size=32, callbacks=[])
    assert found["label"] == pytest.approx(load_digits(return_X_y=True)[1].mean(), rel=1e-5)


@pytest.mark.parametrize("streams", [False, True])
def test_without_a_batch_size_it_says_what_to_write(streams):
    data = digits().to_iterable_dataset() if streams else digits()
    with pytest.raises(solstice.DataError, match=r"examples, not batches. Write `batch_size=32`"):
        solstice.train(Classifier(np.float32(0)), train_ds=data, callbacks=[])


def test_what_the_documentation_shows_trains_a_ready_made_experiment():
    data = digits()

    def train_ds(epoch):
        for batch in data.shuffle(seed=epoch).with_format("numpy").iter(32):
            yield batch["image"], batch["label"]

    net = eqx.nn.Linear(64, 10, key=jax.random.key(0))
    exp = solstice.ClassificationExperiment(net, Sgd(0.5))
    exp = exp.train(train_ds, num_epochs=5, callbacks=[])
    assert exp.test(train_ds, callbacks=[])["accuracy"] > 0.9


def test_it_is_recognised_by_its_type():
    assert library_of(digits()) == "datasets"
    assert library_of([1]) is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("epoch", "index"), [(0, 3), (2, 1)])
def test_an_epoch_is_taken_up_again_in_its_middle(stream, epoch, index):
    """By its number, or, of a stream that is shuffled, by reading the epoch again."""

    def make():
        data = digits().select(range(100))
        if not stream:
            return open_source(data, "train_ds", 16, shuffle=True)
        return open_source(data.to_iterable_dataset().shuffle(seed=1, buffer_size=30), "ds", 16)

    first = make()
    whole = [list(first.epoch(number)) for number in range(epoch + 1)]
    second = make()
    second.first()
    last = fingerprint(whole[epoch][index - 1])
    back = second.seek(epoch, index, first.position(index, is_closed=False), last)
    rest = list(second.epoch(epoch))
    assert back.is_same
    assert back.how == f"exactly, {f'by reading {index} batches again' if stream else 'at once'}"
    assert len(rest) == 7 - index
    for found, expected in zip(rest, whole[epoch][index:], strict=True):
        np.testing.assert_array_equal(found["label"], expected["label"])
        np.testing.assert_array_equal(found["image"], expected["image"])
