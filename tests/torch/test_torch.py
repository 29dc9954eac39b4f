"""torch: a DataLoader is a data set, and its tensors become NumPy arrays."""

import equinox as eqx
import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

import solstice

torch = pytest.importorskip("torch")
optax = pytest.importorskip("optax")
pytestmark = pytest.mark.filterwarnings("default")  # torch warns of its own dependencies


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax raises a float to the power of an integer, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def loader(**options: object) -> object:
    x, y = digits()
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    return torch.utils.data.DataLoader(dataset, batch_size=32, **options)


def classifier() -> solstice.ClassificationExperiment:
    model = eqx.nn.Linear(64, 10, key=jax.random.key(0))
    return solstice.ClassificationExperiment(model, optax.adam(1e-2), num_classes=10)


def test_a_data_loader_trains_as_the_same_batches_in_numpy_do():
    batches = solstice.data.batches(digits(), 32)
    expected = classifier().train(batches, num_epochs=2, callbacks=[])
    trained = classifier().train(loader(), num_epochs=2, callbacks=[])
    jax.tree.map(np.testing.assert_array_equal, trained.params, expected.params)


def test_a_shuffled_data_loader_learns():
    torch.manual_seed(0)
    exp = classifier().train(loader(shuffle=True), num_epochs=5, callbacks=[])
    assert exp.test(loader(), callbacks=[])["accuracy"] > 0.9


def test_a_tensor_that_requires_grad_is_an_error_that_says_so():
    batch = (torch.zeros(4, 64, requires_grad=True), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(solstice.DataError, match=r"torch\.Tensor .*train_ds.*detach"):
        classifier().train([batch], num_epochs=1, callbacks=[])


def test_an_iterable_data_set_without_a_length_trains():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            x, y = digits()
            return iter(list(zip(x[:100], y[:100], strict=True)))

    stream = torch.utils.data.DataLoader(Stream(), batch_size=32)
    assert classifier().train(stream, num_epochs=2, callbacks=[]).step == 8


def test_a_data_set_that_gives_examples_says_what_to_write():
    x, y = digits()
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    with pytest.raises(solstice.DataError, match=r"DataLoader\(train_ds, batch_size=32"):
        classifier().train(dataset, callbacks=[])
