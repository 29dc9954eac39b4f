"""From equal weights, the same network has the same loss curve in every framework."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.example_libraries import stax
from sklearn.datasets import load_digits

import solstice

pytestmark = pytest.mark.bits

STEPS = 50
RNG = np.random.default_rng(0)
W1 = RNG.normal(size=(64, 32), scale=0.15).astype(np.float32)
W2 = RNG.normal(size=(32, 10), scale=0.2).astype(np.float32)
B1, B2 = np.full(32, 0.01, np.float32), np.full(10, -0.01, np.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(10, name="b")(nn.relu(nn.Dense(32, name="a")(x)))


class NNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a = nnx.Linear(64, 32, rngs=rngs)
        self.b = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.b(nnx.relu(self.a(x)))


def haiku_net(x: Any) -> Any:
    return hk.Linear(10, name="b")(jax.nn.relu(hk.Linear(32, name="a")(x)))


def equinox_net(params: Any) -> Any:
    """The params of an `eqx.nn.MLP`, whose weights are transposed."""
    where = lambda m: (  # noqa: E731
        m.layers[0].weight,
        m.layers[0].bias,
        m.layers[1].weight,
        m.layers[1].bias,
    )
    return eqx.tree_at(where, params, tuple(map(jnp.asarray, (W1.T, B1, W2.T, B2))))


def dense(weight: str) -> dict[str, Any]:
    return {"a": {weight: W1, "bias": B1}, "b": {weight: W2, "bias": B2}}


CASES: dict[str, tuple[Any, Any]] = {
    "linen": (lambda: Linen(), lambda params: dense("kernel")),
    "nnx": (lambda: NNX(nnx.Rngs(0)), lambda params: dense("kernel")),
    "haiku": (
        lambda: hk.transform(haiku_net),
        lambda params: {"a": {"w": W1, "b": B1}, "b": {"w": W2, "b": B2}},
    ),
    "stax": (
        lambda: stax.serial(stax.Dense(32), stax.Relu, stax.Dense(10)),
        lambda params: [(W1, B1), (), (W2, B2)],
    ),
    "equinox": (lambda: eqx.nn.MLP(64, 10, 32, 1, key=jax.random.key(0)), equinox_net),
}


class Losses(solstice.Callback):
    """The loss of each step."""

    needs = ("outputs",)

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step_end(self, record: solstice.Record) -> None:
        self.losses.append(float(record.outputs.compute()["loss"]))


def curve(name: str) -> list[float]:
    make, weights = CASES[name]
    x, y = load_digits(return_X_y=True)
    data = solstice.data.batches(((x / 16).astype(np.float32), y), 32)
    optimizer = solstice.compat.as_optimizer(optax.adam(3e-3))
    exp = solstice.ClassificationExperiment(make(), optimizer, sample_input=jnp.zeros((1, 64)))
    params = jax.tree.map(jnp.asarray, weights(exp.params))
    assert jax.tree.structure(params) == jax.tree.structure(exp.params)
    exp = exp.with_params(params)
    losses = Losses()
    solstice.Trainer([losses]).fit(exp, data, max_steps=STEPS)
    return losses.losses


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes floats and integers, and the frameworks add a bias of one axis to rows."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def reference() -> list[float]:
    """The same 50 steps, in plain JAX and Optax."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    params: Any = {"w1": W1, "b1": B1, "w2": W2, "b2": B2}

    def loss(p: Any, x: Any, y: Any) -> Any:
        logits = jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    tx = optax.adam(3e-3)
    state, losses = tx.init(params), []
    grad = jax.jit(jax.value_and_grad(loss))
    for step in range(STEPS):
        rows = slice(32 * step, 32 * (step + 1))
        value, grads = grad(params, x[rows], y[rows])
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    return losses


@pytest.mark.parametrize("name", CASES)
def test_the_loss_curve_is_that_of_plain_jax(name: str):
    losses, expected = curve(name), reference()
    assert expected[-1] < 0.8 * expected[0]
    np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=0)


def square(params: Any) -> Any:
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", CASES)
def test_a_penalty_in_the_weights_is_trained(name: str):
    """Its gradient alone: of the loss of an output that is a constant."""
    make, weights = CASES[name]
    learner = solstice.experiments.Learner(make(), optax.sgd(0.1), sample_input=jnp.zeros((1, 64)))
    params = jax.tree.map(jnp.asarray, weights(learner.params))
    learner = learner.with_params(params)

    def losses(model: Any, batch: Any) -> Any:
        fit = jax.lax.stop_gradient(model(batch)).sum(-1)
        return fit + 0.5 * square(model.params), None, None

    new, _ = jax.jit(lambda learner, x: learner.update(losses, x))(learner, jnp.ones((4, 64)))
    expected = jax.tree.map(lambda w: 0.9 * w, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new.params, expected)
