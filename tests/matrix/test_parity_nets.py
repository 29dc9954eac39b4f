"""The parity kit moves weights between frameworks, and what it moves trains to the same numbers."""

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
from solstice.compat import EquinoxModel, as_model
from solstice.testing import parity

pytestmark = pytest.mark.bits

IMAGES, LABELS = load_digits().images.astype(np.float32)[..., None] / 16, load_digits().target
TOKENS = load_digits().data.astype(np.int32)
WIDTH, HEADS, HIDDEN, EPS = 32, 4, 64, 1e-5
STABLE = {"use_fast_variance": False}
"""Variances as the others take them: Flax would subtract squares, which costs digits."""


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes floats and integers, and the frameworks add a bias of one axis to rows."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def batches(x: Any) -> Any:
    return solstice.data.batches((x, LABELS), 32)


# A convolution, BatchNorm, a mean over the image, a dense layer.


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Conv(8, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(not train, epsilon=EPS, name="norm", **STABLE)(x))
        return nn.Dense(10, name="out")(x.mean((1, 2)))


class NNXCNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, epsilon=EPS, rngs=rngs, **STABLE)
        self.out = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def haiku_cnn(x: Any, is_training: bool) -> Any:
    x = hk.Conv2D(8, 3, name="conv")(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9, eps=EPS, name="norm")(x, is_training))
    return hk.Linear(10, name="out")(x.mean((1, 2)))


class EquinoxCNN(eqx.Module):
    conv: Any
    norm: Any
    out: Any

    def __init__(self, key: Any) -> None:
        one, two = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 8, 3, padding=1, key=one)
        self.norm = eqx.nn.BatchNorm(8, "batch", eps=EPS, mode="batch")
        self.out = eqx.nn.Linear(8, 10, key=two)

    def __call__(self, x: Any, state: Any) -> Any:
        x, state = self.norm(self.conv(jnp.moveaxis(x, -1, 0)), state)
        return self.out(jax.nn.relu(x).mean((1, 2))), state


STAX_CNN = stax.serial(
    stax.Conv(8, (3, 3), padding="SAME"),
    stax.BatchNorm(epsilon=EPS),
    stax.Relu,
    stax.AvgPool((8, 8)),
    stax.Flatten,
    stax.Dense(10),
)

CNN = {"conv": ("conv", "conv"), "norm": ("norm", "norm"), "out": ("dense", "out")}
CNNS = {
    "linen": parity.Net(LinenCNN(), parity.FLAX, CNN),
    "nnx": parity.Net(NNXCNN(nnx.Rngs(0)), parity.FLAX, CNN),
    "haiku": parity.Net(hk.transform_with_state(haiku_cnn), parity.HAIKU, CNN),
    "equinox": parity.Net(
        EquinoxModel(lambda key: eqx.nn.make_with_state(EquinoxCNN)(key)), parity.EQUINOX, CNN
    ),
    "stax": parity.Net(
        STAX_CNN,
        parity.STAX,
        {"conv": ("conv", "0"), "norm": ("norm", "1"), "out": ("dense", "5")},
    ),
}


# Tokens, one block of a transformer, a mean over the tokens, a dense layer. All tokens of one kind
# are alike, so a ReLU would turn for all at once on a rounding error; GELU is smooth.


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Embed(17, WIDTH, name="embed")(x)
        y = nn.LayerNorm(EPS, name="norm1", **STABLE)(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, use_bias=False, name="attention")(y, y)
        y = nn.LayerNorm(EPS, name="norm2", **STABLE)(x)
        x = x + nn.Dense(WIDTH, name="down")(jax.nn.gelu(nn.Dense(HIDDEN, name="up")(y)))
        return nn.Dense(10, name="out")(x.mean(1))


class NNXTransformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(17, WIDTH, rngs=rngs)
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=EPS, rngs=rngs, **STABLE)
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, use_bias=False, decode=False, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=EPS, rngs=rngs, **STABLE)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(jax.nn.gelu(self.up(self.norm2(x))))
        return self.out(x.mean(1))


def haiku_transformer(x: Any) -> Any:
    def norm(name: str) -> Any:
        return hk.LayerNorm(-1, True, True, eps=EPS, name=name)

    x = hk.Embed(17, WIDTH, name="embed")(x)
    y = norm("norm1")(x)
    attention = hk.MultiHeadAttention(
        HEADS, WIDTH // HEADS, w_init=hk.initializers.VarianceScaling(), with_bias=False,
        model_size=WIDTH, name="attention",
    )  # fmt: skip
    x = x + attention(y, y, y)
    up, down = hk.Linear(HIDDEN, name="up"), hk.Linear(WIDTH, name="down")
    x = x + down(jax.nn.gelu(up(norm("norm2")(x))))
    return hk.Linear(10, name="out")(x.mean(1))


class EquinoxTransformer(eqx.Module):
    embed: Any
    norm1: Any
    attention: Any
    norm2: Any
    up: Any
    down: Any
    out: Any

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 5)
        self.embed = eqx.nn.Embedding(17, WIDTH, key=keys[0])
        self.norm1 = eqx.nn.LayerNorm(WIDTH, EPS)
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=keys[1])
        self.norm2 = eqx.nn.LayerNorm(WIDTH, EPS)
        self.up = eqx.nn.Linear(WIDTH, HIDDEN, key=keys[2])
        self.down = eqx.nn.Linear(HIDDEN, WIDTH, key=keys[3])
        self.out = eqx.nn.Linear(WIDTH, 10, key=keys[4])

    def __call__(self, x: Any) -> Any:
        x = jax.vmap(self.embed)(x)
        y = jax.vmap(self.norm1)(x)
        x = x + self.attention(y, y, y)
        feed = lambda y: self.down(jax.nn.gelu(self.up(self.norm2(y))))  # noqa: E731
        x = x + jax.vmap(feed)(x)
        return self.out(x.mean(0))


TRANSFORMER = {
    "embed": ("embedding", "embed"),
    "norm1": ("norm", "norm1"),
    "attention": ("attention", "attention"),
    "norm2": ("norm", "norm2"),
    "up": ("dense", "up"),
    "down": ("dense", "down"),
    "out": ("dense", "out"),
}
TRANSFORMERS = {
    "linen": parity.Net(LinenTransformer(), parity.FLAX, TRANSFORMER),
    "nnx": parity.Net(NNXTransformer(nnx.Rngs(0)), parity.FLAX, TRANSFORMER),
    "haiku": parity.Net(hk.transform(haiku_transformer), parity.HAIKU, TRANSFORMER),
    "equinox": parity.Net(EquinoxTransformer(jax.random.key(0)), parity.EQUINOX, TRANSFORMER),
}


@pytest.mark.parametrize("name", [name for name in CNNS if name != "linen"])
def test_a_cnn_with_batch_norm_trains_alike(name: str):
    nets = {"linen": CNNS["linen"], name: CNNS[name]}
    parity.assert_parity(nets, optax.sgd(0.05, 0.9), batches(IMAGES))


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if name != "linen"])
def test_a_transformer_block_trains_alike(name: str):
    nets = {"linen": TRANSFORMERS["linen"], name: TRANSFORMERS[name]}
    parity.assert_parity(nets, optax.adam(1e-3, eps=1e-3), batches(TOKENS))


def weights_of(net: parity.Net, x: Any) -> parity.Weights:
    params, _ = as_model(net.model).init(jax.random.key(1), x)
    return parity.read_weights(params, net.layers, net.layout)


@pytest.mark.parametrize(
    ("nets", "x"), [(CNNS, IMAGES[:2]), (TRANSFORMERS, TOKENS[:2])], ids=["cnn", "transformer"]
)
def test_weights_come_back_as_they_were_moved(nets: dict[str, parity.Net], x: Any):
    weights = weights_of(nets["linen"], x)
    for net in nets.values():
        params, _ = as_model(net.model).init(jax.random.key(2), x)
        moved = parity.write_weights(params, net.layers, net.layout, weights)
        assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, params)
        back = parity.read_weights(moved, net.layers, net.layout)
        jax.tree.map(np.testing.assert_array_equal, back, weights)


LAYOUTS = {"linen": "flax", "nnx": "nnx", "haiku": "haiku", "equinox": "equinox"}


@pytest.mark.parametrize(
    ("nets", "x"), [(CNNS, IMAGES[:8]), (TRANSFORMERS, TOKENS[:8])], ids=["cnn", "transformer"]
)
def test_weights_and_averages_go_round_all_frameworks(nets: dict[str, parity.Net], x: Any):
    """Each net computes in evaluation what the first one did, with averages that have moved."""
    models = {name: as_model(nets[name].model) for name in LAYOUTS}

    def evaluated(name: str, params: Any, state: Any) -> Any:
        forward = jax.jit(models[name].forward, static_argnames="train")
        return forward(params, state, x, train=False)[0]

    params, state = jax.jit(models["linen"].init)(jax.random.key(0), x)
    state = jax.tree.map(lambda leaf: leaf + 0.5, state)
    expected = evaluated("linen", params, state)
    before = "linen"
    for name in ("haiku", "equinox", "nnx", "linen"):
        like = jax.eval_shape(models[name].init, jax.random.key(1), x)
        params, state = solstice.convert((params, state), like, LAYOUTS[before])
        np.testing.assert_allclose(evaluated(name, params, state), expected, atol=1e-5)
        before = name


def test_nets_that_differ_are_told_apart():
    class Wider(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.Conv(8, (3, 3), name="conv")(x)
            x = nn.relu(nn.BatchNorm(not train, epsilon=0.1, name="norm", **STABLE)(x))
            return nn.Dense(10, name="out")(x.mean((1, 2)))

    nets = {"haiku": CNNS["haiku"], "wider": parity.Net(Wider(), parity.FLAX, CNN)}
    with pytest.raises(AssertionError, match=r"step 1: 'loss' is .* with haiku and .* with wider"):
        parity.assert_parity(nets, optax.sgd(0.1), batches(IMAGES), steps=2)


def test_weights_that_differ_at_the_end_are_told():
    """The last step shows in the weights alone."""

    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.Conv(8, (3, 3), name="conv")(x)
            x = nn.relu(nn.BatchNorm(not train, epsilon=EPS, name="norm", **STABLE)(x))
            return nn.Dense(10, name="out")(jax.lax.stop_gradient(x.mean((1, 2))))

    nets = {"linen": CNNS["linen"], "frozen": parity.Net(Frozen(), parity.FLAX, CNN)}
    with pytest.raises(AssertionError, match=r"after 1 steps the .* of 'conv' differs by up to"):
        parity.assert_parity(nets, optax.sgd(0.1), batches(IMAGES), steps=1)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ({**CNN, "out": ("dense", "head")}, KeyError, "no layer of kind 'dense' at 'head'"),
        ({**CNN, "out": ("lstm", "out")}, KeyError, "has no layer of kind 'lstm'"),
        ({**CNN, "out": ("conv", "out")}, ValueError, "out/kernel has the shape"),
        ({"conv": CNN["conv"]}, ValueError, "leaves out norm/bias"),
    ],
)
def test_layers_that_are_not_there_are_told(layers: Any, error: Any, message: str):
    with pytest.raises(error, match=message):
        weights_of(parity.Net(LinenCNN(), parity.FLAX, layers), IMAGES[:2])


def test_weights_of_another_net_are_refused():
    net = CNNS["linen"]
    params, _ = as_model(net.model).init(jax.random.key(1), IMAGES[:2])
    weights: Any = {k: dict(v) for k, v in weights_of(net, IMAGES[:2]).items()}
    wide = {**weights, "out": {**weights["out"], "kernel": np.zeros((9, 10), np.float32)}}
    with pytest.raises(ValueError, match=r"out/kernel takes \(8, 10\) as i, o; .* \(9, 10\)"):
        parity.write_weights(params, net.layers, net.layout, wide)
    del weights["conv"]["bias"]
    with pytest.raises(ValueError, match="'conv' has bias, kernel here; the weights have kernel"):
        parity.write_weights(params, net.layers, net.layout, weights)
