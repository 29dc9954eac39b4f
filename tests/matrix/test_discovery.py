"""With every adapter installed, a bare object of any framework finds its own."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import optax
import pytest
import toys
from flax import nnx
from jax.example_libraries import stax

import solstice
from solstice import compat

TRACES = []


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax raises a float to the power of an integer, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Linen(nn.Module):
    sizes: list[int]  # makes it unhashable

    @nn.compact
    def __call__(self, x):
        TRACES.append(1)
        return nn.Dense(toys.CLASSES)(x)


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(toys.FEATURES, toys.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


def haiku_net(x):
    return hk.Linear(toys.CLASSES)(x)


def batch_norm():
    return eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")


MODELS = {
    "linen": (nn.Dense(3), "FlaxModel"),
    "linen subclass": (Linen([]), "FlaxModel"),
    "nnx": (nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "NNXModel"),
    "nnx subclass": (NNX(nnx.Rngs(0)), "NNXModel"),
    "haiku": (hk.transform(haiku_net), "HaikuModel"),
    "haiku with state": (hk.transform_with_state(haiku_net), "HaikuModel"),
    "stax": (stax.serial(stax.Dense(3), stax.Relu), "StaxModel"),
    "stax layer": (stax.Dense(3), "StaxModel"),
    "equinox": (eqx.nn.Linear(2, 3, key=toys.KEY), "EquinoxModel"),
    "equinox with state": (batch_norm(), "EquinoxModel"),
}
OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "chain": optax.chain(optax.clip(1.0), optax.sgd(0.1)),
    "lbfgs": optax.lbfgs(),
    "multi-steps": optax.MultiSteps(optax.sgd(0.1), 2),
}


@pytest.mark.parametrize(("model", "name"), MODELS.values(), ids=MODELS)
def test_model_finds_its_adapter_and_keeps_it(model, name):
    adapter = compat.as_model(model)
    assert type(adapter) is getattr(compat, name)
    assert compat.as_model(model) is adapter
    assert compat.as_model(adapter) is adapter


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizer_finds_its_adapter_and_keeps_it(optimizer):
    adapter = compat.as_optimizer(optimizer)
    assert type(adapter) is compat.OptaxOptimizer
    assert compat.as_optimizer(optimizer) is adapter


@pytest.mark.parametrize(("model", "name"), MODELS.values(), ids=MODELS)
def test_model_given_as_optimizer_says_so(model, name):
    with pytest.raises(TypeError, match=r"as_optimizer was given a model: .* Use as_model"):
        compat.as_optimizer(model)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizer_given_as_model_says_so(optimizer):
    with pytest.raises(TypeError, match=r"as_model was given an optimizer: .* Use as_optimizer"):
        compat.as_model(optimizer)


def test_dir_lists_all():
    names = {"EquinoxModel", "FlaxModel", "HaikuModel", "NNXModel", "OptaxOptimizer", "StaxModel"}
    assert names <= set(dir(compat))


def test_experiments_that_share_model_and_optimizer_share_a_compilation():
    module, tx = Linen([]), optax.adam(1e-2)
    step = jax.jit(solstice.ClassificationExperiment.train_step)
    experiments = [
        solstice.ClassificationExperiment(
            module, tx, num_classes=toys.CLASSES, seed=seed, sample_input=toys.X
        )
        for seed in range(3)
    ]
    TRACES.clear()
    losses = [step(each, toys.blobs(1)[0])[1].compute()["loss"] for each in experiments]
    assert len(TRACES) == 1
    assert len(set(map(float, losses))) == 3
