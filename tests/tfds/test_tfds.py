"""TensorFlow Datasets: the README's example, a real builder on tf.data, and without TensorFlow."""

import re
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice._sources import open_source

tfds = pytest.importorskip("tensorflow_datasets")

README = Path(__file__).parents[2] / "README.md"
# tfds and TensorFlow warn of their own dependencies.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax raises a float to the power of an integer, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def readme_example(word: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return next(block for block in blocks if word in block)


class Flat(eqx.Module):
    """Flattens an image of bytes for a linear layer."""

    linear: eqx.nn.Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x.reshape(-1).astype(jnp.float32) / 16)


def classifier() -> solstice.ClassificationExperiment:
    model = Flat(eqx.nn.Linear(64, 10, key=jax.random.key(0)))
    optax = pytest.importorskip("optax")
    return solstice.ClassificationExperiment(model, optax.adam(1e-2), num_classes=10)


def random_classifier() -> Any:
    source = readme_example("class RandomClassifier").split("train_ds = ")[0]
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(source, namespace)
    return namespace["RandomClassifier"](42)


@pytest.fixture(scope="session")
def tfrecords(tmp_path_factory: pytest.TempPathFactory) -> str:
    from solstice_digits import SolsticeDigits

    folder = str(tmp_path_factory.mktemp("tfrecord"))
    SolsticeDigits(data_dir=folder, file_format="tfrecord").download_and_prepare()
    return folder


def test_the_readme_example_runs_as_written():
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(readme_example("class RandomClassifier"), namespace)
    with tfds.testing.mock_data(num_examples=70):
        exec(readme_example("tfds.load"), namespace)
    before, after = namespace["exp"], namespace["trained_exp"]
    assert type(after).__name__ == "RandomClassifier"
    key = before.rng_state
    for _ in range(3):  # 70 examples are three batches of 32, the last partial
        key = jax.random.split(key)[0]
    np.testing.assert_array_equal(after.rng_state, key)


def test_random_classifier_counts_every_example_of_a_tf_data_set(tfrecords: str):
    ds = tfds.load("solstice_digits", split="test", data_dir=tfrecords, as_supervised=True)
    metrics = solstice.test(random_classifier(), ds.batch(32).prefetch(1), callbacks=[])
    labels = np.array([int(label) for _, label in ds.as_numpy_iterator()])
    assert len(labels) == 297
    assert metrics["num_out_of_range"] == (labels >= 2).sum()
    assert np.isnan(metrics["loss"])
    assert 0 < metrics["accuracy"] < 0.25  # two of ten labels, guessed by a coin


def test_a_classifier_learns_from_tf_data(tfrecords: str):
    load = {"data_dir": tfrecords, "as_supervised": True}
    train_ds = tfds.load("solstice_digits", split="train", **load).batch(32).prefetch(1)
    test_ds = tfds.load("solstice_digits", split="test", **load).batch(50)
    exp = classifier().train(train_ds, num_epochs=5, callbacks=[])
    assert exp.test(test_ds, callbacks=[])["accuracy"] > 0.8


def test_an_exhausted_numpy_iterator_of_tf_data_is_an_error(tfrecords: str):
    ds = tfds.load("solstice_digits", split="test", data_dir=tfrecords, as_supervised=True)
    with pytest.raises(solstice.DataError, match="one-shot"):
        classifier().train(ds.batch(32).as_numpy_iterator(), num_epochs=2, callbacks=[])


def test_an_endless_tf_data_set_needs_a_bound_on_the_steps(tfrecords: str):
    ds = tfds.load("solstice_digits", split="test", data_dir=tfrecords, as_supervised=True)
    exp = classifier().train(ds.batch(32).repeat(), max_steps=25, callbacks=[])
    assert exp.step == 25


def test_a_classifier_learns_without_tensorflow(tmp_path: Path):
    import grain
    from solstice_digits import SolsticeDigits

    builder = SolsticeDigits(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    source = tfds.data_source("solstice_digits", split="train", data_dir=str(tmp_path))
    train_ds = (
        grain.MapDataset.source(source)
        .seed(0)
        .shuffle()
        .map(lambda example: (example["image"], example["label"]))
        .batch(32)
    )
    exp = classifier().train(train_ds, num_epochs=5, callbacks=[])
    assert exp.step == 5 * 47
    assert exp.test(train_ds, callbacks=[])["accuracy"] > 0.8
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(("epoch", "index"), [(0, 2), (1, 0), (1, 3), (2, 5)])
def test_a_seeded_tf_data_set_is_taken_up_again_by_reading_all_epochs(epoch: int, index: int):
    """It shuffles anew for each pass, by a seed and the passes before."""
    tf = pytest.importorskip("tensorflow")

    def make() -> Any:
        return open_source(tf.data.Dataset.range(23).shuffle(23, seed=5).batch(4), "train_ds")

    first, second = make(), make()
    epochs = [[batch.tolist() for batch in first.epoch(number)] for number in range(epoch + 2)]
    second.first()
    back = second.seek(epoch, index, first.position(index, is_closed=False), None)
    assert back.how == f"exactly, by reading {6 * epoch + index} batches again"
    assert [batch.tolist() for batch in second.epoch(epoch)] == epochs[epoch][index:]
    assert [batch.tolist() for batch in second.epoch(epoch + 1)] == epochs[epoch + 1]
    assert len({str(batches) for batches in epochs}) == epoch + 2
