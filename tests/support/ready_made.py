"""Small ready-made Experiments, one of each kind, with data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.testing import Sgd

RNG = np.random.default_rng(0)
N, FEATURES = 40, 4
X = RNG.normal(size=(N, FEATURES)).astype(np.float32)
Y = RNG.integers(0, 3, N).astype(np.int32)
LABELS = RNG.integers(0, 2, (N, 3)).astype(np.int32)
NUMBERS = (X @ RNG.normal(size=FEATURES)).astype(np.float32)
PIXELS = RNG.random((N, FEATURES)).astype(np.float32)
TOKENS = RNG.integers(0, 5, (N, 7)).astype(np.int32)
MASK = RNG.random(N) < 0.6


def layer(size, features=FEATURES):
    return eqx.nn.Linear(features, size, key=jax.random.key(size))


@jax.tree_util.register_static
class Tokens:
    """Logits from a table of the last token."""

    def init(self, key, x, /):
        return {"table": jax.random.normal(key, (5, 5))}, ()

    def forward(self, params, state, x, /, *, train, key=None):
        return params["table"][x], state


@jax.tree_util.register_static
class Adam:
    """Adam without its correction of the start: the core's tests have no Optax."""

    def init(self, params, /):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros

    def step(self, grads, state, params, /, **extra):
        mean = jax.tree.map(lambda m, g: 0.8 * m + 0.2 * g, state[0], grads)
        square = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * g**2, state[1], grads)
        new = jax.tree.map(
            lambda p, m, s: p - 0.02 * m / (jnp.sqrt(s) + 1e-6), params, mean, square
        )
        return new, (mean, square)

    def eval_params(self, state, params, /):
        return params


TABLE = Tokens()
SGD, ADAM = Sgd(0.1), Adam()
THREE, ONE, TWO = layer(3), layer(1), layer(2)
BACK = layer(FEATURES, 2)
VARIATIONAL = layer(4)
JUDGE = eqx.nn.MLP(FEATURES, "scalar", 16, 1, key=jax.random.key(1))


def classes(**options):
    return solstice.ClassificationExperiment(THREE, SGD, 3, sample_input=X, **options)


def binary(**options):
    return solstice.BinaryClassificationExperiment(ONE, SGD, sample_input=X, **options)


def labels(**options):
    return solstice.MultilabelClassificationExperiment(THREE, SGD, 3, sample_input=X, **options)


def regression(**options):
    return solstice.RegressionExperiment(ONE, SGD, sample_input=X, **options)


def language(**options):
    return solstice.LanguageModelExperiment(TABLE, SGD, 5, sample_input=TOKENS, **options)


def autoencoder(**options):
    return solstice.AutoencoderExperiment(TWO, BACK, SGD, sample_input=PIXELS, **options)


def vae(**options):
    return solstice.VAEExperiment(VARIATIONAL, BACK, SGD, 2, sample_input=PIXELS, **options)


def gan(**options):
    return solstice.GANExperiment(BACK, JUDGE, SGD, 2, sample_input=PIXELS, **options)


KINDS = {
    "classes": (classes, (X, Y)),
    "binary": (binary, (X, Y == 1)),
    "labels": (labels, (X, LABELS)),
    "regression": (regression, (X, NUMBERS)),
    "language": (language, TOKENS),
    "autoencoder": (autoencoder, PIXELS),
    "vae": (vae, PIXELS),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def rows(batch, chosen):
    return jax.tree.map(lambda leaf: leaf[chosen], batch)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def close(found, expected, rtol=1e-5):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    for one, other in zip(found, expected, strict=True):
        if not jnp.issubdtype(jnp.asarray(one).dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-6)


@eqx.filter_jit
def trained(exp, batch):
    """A step of training and its metrics, compiled: its operations one by one take far longer."""
    new, outputs = exp.train_step(batch)
    return new, outputs.compute()


@eqx.filter_jit
def evaluated(exp, batch):
    return exp.eval_step(batch)[1].compute()


def computed(exp, batch):
    return {name: float(value) for name, value in evaluated(exp, batch).items()}


def noiseless(**options):
    """A VAE whose latents hardly vary, so that training does not depend on the noise drawn."""
    exp = vae(**options)
    encoder = exp.params["encoder"]
    certain = encoder.bias.at[2:].set(-60.0)
    encoder = eqx.tree_at(lambda layer: layer.bias, encoder, certain)
    return exp.with_params({**exp.params, "encoder": encoder})
