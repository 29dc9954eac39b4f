"""torch: a DataLoader is a data set, and its tensors become NumPy arrays."""

import equinox as eqx
import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

import solstice
from solstice._sources import open_source

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


# Resuming


def shuffled(stateful):
    generator = torch.Generator().manual_seed(5)
    rows = torch.utils.data.TensorDataset(torch.arange(23))
    if stateful:
        torchdata = pytest.importorskip("torchdata.stateful_dataloader")
        return torchdata.StatefulDataLoader(rows, 4, shuffle=True, generator=generator)
    return torch.utils.data.DataLoader(rows, 4, shuffle=True, generator=generator)


def numbers(batches):
    return [batch[0].tolist() for batch in batches]


@pytest.mark.parametrize("stateful", [True, False])
@pytest.mark.parametrize(("epoch", "index"), [(0, 2), (1, 0), (1, 3), (2, 5)])
def test_a_seeded_loader_is_taken_up_again(stateful, epoch, index):
    """Its order depends on all epochs before, which are read again.

    The state of torchdata's loader would bring back this epoch, and not the order of the next.
    """
    first, second = (open_source(shuffled(stateful), "train_ds") for _ in range(2))
    epochs = [numbers(first.epoch(e)) for e in range(epoch + 2)]
    second.first()
    back = second.seek(epoch, index, first.position(index, is_closed=False), None)
    assert back.how == f"exactly, by reading {6 * epoch + index} batches again"
    assert numbers(second.epoch(epoch)) == epochs[epoch][index:]
    assert numbers(second.epoch(epoch + 1)) == epochs[epoch + 1]
    assert len({str(batches) for batches in epochs}) == epoch + 2
