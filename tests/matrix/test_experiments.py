"""The same ready-made Experiments, with the networks and optimisers of several frameworks."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import solstice
from solstice import compat

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 4)).astype(np.float32)
NUMBERS = (X @ RNG.normal(size=4)).astype(np.float32)
PIXELS = jax.device_get(jax.nn.sigmoid(X @ RNG.normal(size=(4, 6)).astype(np.float32)))
STARTS = RNG.integers(0, 5, (96, 1))
TOKENS = ((STARTS + 2 * np.arange(8)) % 5).astype(np.int32)


def linen(size):
    return nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(size)])


def haiku(size):
    return hk.transform(lambda x: hk.nets.MLP([16, size], activation=jnp.tanh)(x))


class Net(nnx.Module):
    def __init__(self, inputs, size, rngs):
        self.one = nnx.Linear(inputs, 16, rngs=rngs)
        self.two = nnx.Linear(16, size, rngs=rngs)

    def __call__(self, x):
        return self.two(jnp.tanh(self.one(x)))


def linen_text(size):
    return nn.Sequential([nn.Embed(size, 8), nn.Dense(size)])


def haiku_text(size):
    return hk.transform(lambda x: hk.Sequential([hk.Embed(size, 8), hk.Linear(size)])(x))


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax and Haiku mix dtypes, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(3e-2, 400))
)
EXPERIMENTS = {
    "classification": (
        lambda net, text: solstice.ClassificationExperiment(net(3), OPTIMIZER, 3),
        (X, np.digitize(NUMBERS, [-1, 1])),
    ),
    "binary": (
        lambda net, text: solstice.BinaryClassificationExperiment(net(1), OPTIMIZER),
        (X, NUMBERS > 0),
    ),
    "multilabel": (
        lambda net, text: solstice.MultilabelClassificationExperiment(net(4), OPTIMIZER, 4),
        (X, X > 0),
    ),
    "regression": (
        lambda net, text: solstice.RegressionExperiment(net(1), OPTIMIZER),
        (X, NUMBERS),
    ),
    "language": (
        lambda net, text: solstice.LanguageModelExperiment(text(5), OPTIMIZER, 5),
        TOKENS,
    ),
    "autoencoder": (
        lambda net, text: solstice.AutoencoderExperiment(net(3), net(6), OPTIMIZER),
        PIXELS,
    ),
    "vae": (
        lambda net, text: solstice.VAEExperiment(net(4), net(6), OPTIMIZER, 2),
        PIXELS,
    ),
}
FRAMEWORKS = {"linen": (linen, linen_text), "haiku": (haiku, haiku_text)}


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_it_learns(kind, framework):
    make, data = EXPERIMENTS[kind]
    exp = make(*FRAMEWORKS[framework])
    start = exp.train(data, batch_size=32, num_epochs=1, callbacks=[])
    before = start.test(data, batch_size=40, callbacks=[])["loss"]
    trained = start.train(data, batch_size=32, num_epochs=100, callbacks=[])
    after = trained.test(data, batch_size=40, callbacks=[])["loss"]
    assert after < (0.97 if kind == "vae" else 0.5) * before


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["linen", "haiku"])
def test_a_gan_of_either_framework_finds_the_data(framework):
    x = np.random.default_rng(1).normal(3.0, 0.5, (512, 1)).astype(np.float32)
    net, _ = FRAMEWORKS[framework]
    optimizer = optax.adam(1e-2, b1=0.5)
    exp = solstice.GANExperiment(net(1), net(1), compat.ema(optimizer, 0.95), 2)
    exp = exp.train(x, batch_size=64, num_epochs=40, callbacks=[])
    assert float(exp.sample(jax.random.key(0), 1000).mean()) == pytest.approx(3.0, abs=0.6)


def test_models_of_two_frameworks_in_one_experiment():
    decoder = Net(2, 6, nnx.Rngs(0))
    exp = solstice.VAEExperiment(haiku(4), decoder, OPTIMIZER, 2)
    exp = exp.train(PIXELS, batch_size=32, callbacks=[])
    assert exp.sample(jax.random.key(0), 2).shape == (2, 6)


@pytest.mark.parametrize("framework", ["linen", "haiku"])
def test_averaged_frozen_and_in_half_precision(framework):
    net = FRAMEWORKS[framework][0](1)
    first = {"linen": "*layers_0*", "haiku": "*linear_0*"}[framework]
    model = compat.mixed_precision(net, "params=float32,compute=bfloat16,output=float32")
    optimizer = compat.ema(compat.freeze(optax.adam(1e-2), first), 0.9)
    exp = solstice.RegressionExperiment(model, optimizer, micro_batches=3, sample_input=X)
    trained = exp.train((X, NUMBERS), batch_size=32, num_epochs=20, callbacks=[])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(exp.params)]
    moved = [
        bool(np.any(one != other))
        for one, other in zip(
            jax.tree.leaves(exp.params), jax.tree.leaves(trained.params), strict=True
        )
    ]
    for path, has_moved in zip(paths, moved, strict=True):
        assert has_moved != ("layers_0" in path or "linear_0" in path), path
    data = {"test_ds": (X, NUMBERS), "batch_size": 40, "callbacks": []}
    assert trained.test(**data)["loss"] < 0.5 * exp.test(**data)["loss"]
