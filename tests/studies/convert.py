"""`python tests/studies/convert.py`: weights of torch in four frameworks, and back.

An MLP, a CNN with BatchNorm and a transformer encoder. A file of safetensors that torch wrote must
give the outputs of torch in Linen, NNX, Haiku and Equinox, and the weights of each of these must
give its outputs in torch, within 1e-5. The same holds for a CNN and an attention of Keras and
Linen. The exit code is 1 if one differs. It needs torch and Keras; `--quick` leaves out the
transformer and Keras.
"""

import itertools
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.torch
import torch
from flax import nnx

import solstice
from solstice.compat import EquinoxModel, Model
from solstice_flax import FlaxModel, NNXModel
from solstice_haiku import HaikuModel

BOUND = 1e-5
EPS = 1e-5
WIDTH, HEADS, HIDDEN, TOKENS, BLOCKS = 16, 4, 48, 23, 2
LAYOUTS = {"linen": "flax", "nnx": "nnx", "haiku": "haiku", "equinox": "equinox"}


@dataclass
class Case:
    """A net of torch, the same in four frameworks, and inputs for both.

    Attributes:
        channels_first: whether torch takes the axes of images in another order.
        flattened: the argument of `convert`, by the framework that gets the weights.
    """

    theirs: torch.nn.Module
    mine: dict[str, Model]
    x: np.ndarray[Any, Any]
    channels_first: bool = False
    flattened: dict[str, dict[str, int]] | None = None

    def for_torch(self) -> torch.Tensor:
        return torch.from_numpy(np.moveaxis(self.x, -1, 1) if self.channels_first else self.x)


# An MLP with hidden layers of one shape.

SIZES = [8, 16, 16, 16, 3]


class TorchMLP(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        pairs = itertools.pairwise(SIZES)
        layers = [layer for i, o in pairs for layer in (torch.nn.Linear(i, o), torch.nn.ReLU())]
        self.layers = torch.nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for size in SIZES[1:-1]:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(SIZES[-1])(x)


class NNXMLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        pairs = itertools.pairwise(SIZES)
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in pairs])

    def __call__(self, x: Any) -> Any:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def mlp() -> Case:
    mine = {
        "linen": FlaxModel(LinenMLP()),
        "nnx": NNXModel(NNXMLP(nnx.Rngs(1))),
        "haiku": HaikuModel(hk.transform(lambda x: hk.nets.MLP(SIZES[1:])(x))),
        "equinox": EquinoxModel(eqx.nn.MLP(8, 3, 16, 3, key=jax.random.key(1))),
    }
    return Case(TorchMLP(), mine, normal(5, 8))


# Two convolutions with BatchNorm, one without a bias; a flattened image; two dense layers.


class TorchCNN(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = torch.nn.BatchNorm2d(4)
        self.conv2 = torch.nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(6)
        self.fc1 = torch.nn.Linear(6 * 4 * 4, 10)
        self.fc2 = torch.nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.relu(nn.BatchNorm(not train, epsilon=EPS)(nn.Conv(4, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Conv(6, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(not train, epsilon=EPS)(x))
        x = nn.relu(nn.Dense(10)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


class NNXCNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, epsilon=EPS, rngs=rngs)
        self.conv2 = nnx.Conv(4, 6, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(6, epsilon=EPS, rngs=rngs)
        self.hidden = nnx.Linear(96, 10, rngs=rngs)
        self.out = nnx.Linear(10, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.max_pool(nnx.relu(self.norm1(self.conv1(x))), (2, 2), (2, 2))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.out(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


def haiku_cnn(x: Any, is_training: bool) -> Any:
    x = hk.BatchNorm(True, True, 0.9, eps=EPS)(hk.Conv2D(4, 3)(x), is_training)
    x = hk.max_pool(jax.nn.relu(x), (2, 2, 1), (2, 2, 1), "VALID")
    x = hk.BatchNorm(True, True, 0.9, eps=EPS)(hk.Conv2D(6, 3, with_bias=False)(x), is_training)
    x = hk.Linear(10)(hk.Flatten()(jax.nn.relu(x)))
    return hk.Linear(10)(jax.nn.relu(x))


class EquinoxCNN(eqx.Module):
    convs: list[Any]
    norms: list[Any]
    dense: list[Any]
    pool: Any

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 4)
        self.convs = [
            eqx.nn.Conv2d(1, 4, 3, padding=1, key=keys[0]),
            eqx.nn.Conv2d(4, 6, 3, padding=1, use_bias=False, key=keys[1]),
        ]
        self.norms = [eqx.nn.BatchNorm(size, "batch", eps=EPS, mode="batch") for size in (4, 6)]
        self.dense = [eqx.nn.Linear(96, 10, key=keys[2]), eqx.nn.Linear(10, 10, key=keys[3])]
        self.pool = eqx.nn.MaxPool2d(2, 2)

    def __call__(self, x: Any, state: Any) -> Any:
        x, state = self.norms[0](self.convs[0](jnp.moveaxis(x, -1, 0)), state)
        x, state = self.norms[1](self.convs[1](self.pool(jax.nn.relu(x))), state)
        return self.dense[1](jax.nn.relu(self.dense[0](jax.nn.relu(x).reshape(-1)))), state


def cnn() -> Case:
    mine = {
        "linen": FlaxModel(LinenCNN()),
        "nnx": NNXModel(NNXCNN(nnx.Rngs(1))),
        "haiku": HaikuModel(hk.transform_with_state(haiku_cnn)),
        "equinox": EquinoxModel(lambda key: eqx.nn.make_with_state(EquinoxCNN)(key)),
    }
    first = {"linen": "Dense_0", "nnx": "hidden", "haiku": "linear", "equinox": "dense/0"}
    flattened = {name: {path: 6} for name, path in first.items()}
    return Case(TorchCNN(), mine, normal(5, 8, 8, 1), True, flattened | {"torch": {"fc1": 6}})


# Tokens, two blocks of a transformer encoder, a mean over the tokens, a dense layer.


class TorchEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        block = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, batch_first=True)
        self.embed = torch.nn.Embedding(TOKENS, WIDTH)
        self.encoder = torch.nn.TransformerEncoder(block, BLOCKS)
        self.head = torch.nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.LayerNorm(EPS)(x + nn.MultiHeadDotProductAttention(HEADS)(x, x))
        return nn.LayerNorm(EPS)(x + nn.Dense(WIDTH)(nn.relu(nn.Dense(HIDDEN)(x))))


class LinenEncoder(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Embed(TOKENS, WIDTH)(x)
        for _ in range(BLOCKS):
            x = LinenBlock()(x)
        return nn.Dense(10)(x.mean(1))


class NNXBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=EPS, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=EPS, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(nnx.relu(self.up(x))))


class NNXEncoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(TOKENS, WIDTH, rngs=rngs)
        self.blocks = nnx.List([NNXBlock(rngs) for _ in range(BLOCKS)])
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def haiku_encoder(x: Any) -> Any:
    x = hk.Embed(TOKENS, WIDTH)(x)
    for _ in range(BLOCKS):
        start = hk.initializers.VarianceScaling()
        attention = hk.MultiHeadAttention(HEADS, WIDTH // HEADS, w_init=start, model_size=WIDTH)
        x = hk.LayerNorm(-1, True, True, eps=EPS)(x + attention(x, x, x))
        y = hk.Linear(WIDTH)(jax.nn.relu(hk.Linear(HIDDEN)(x)))
        x = hk.LayerNorm(-1, True, True, eps=EPS)(x + y)
    return hk.Linear(10)(x.mean(1))


class EquinoxBlock(eqx.Module):
    attention: Any
    norm1: Any
    up: Any
    down: Any
    norm2: Any

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 3)
        biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, **biases, key=keys[0])
        self.norm1 = eqx.nn.LayerNorm(WIDTH, EPS)
        self.up = eqx.nn.Linear(WIDTH, HIDDEN, key=keys[1])
        self.down = eqx.nn.Linear(HIDDEN, WIDTH, key=keys[2])
        self.norm2 = eqx.nn.LayerNorm(WIDTH, EPS)

    def __call__(self, x: Any) -> Any:
        x = jax.vmap(self.norm1)(x + self.attention(x, x, x))
        return jax.vmap(lambda y: self.norm2(y + self.down(jax.nn.relu(self.up(y)))))(x)


class EquinoxEncoder(eqx.Module):
    embed: Any
    blocks: list[EquinoxBlock]
    head: Any

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, BLOCKS + 2)
        self.embed = eqx.nn.Embedding(TOKENS, WIDTH, key=keys[0])
        self.blocks = [EquinoxBlock(key) for key in keys[2:]]
        self.head = eqx.nn.Linear(WIDTH, 10, key=keys[1])

    def __call__(self, x: Any) -> Any:
        x = jax.vmap(self.embed)(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(0))


def encoder() -> Case:
    mine = {
        "linen": FlaxModel(LinenEncoder()),
        "nnx": NNXModel(NNXEncoder(nnx.Rngs(1))),
        "haiku": HaikuModel(hk.transform(haiku_encoder)),
        "equinox": EquinoxModel(EquinoxEncoder(jax.random.key(1))),
    }
    tokens = np.random.default_rng(0).integers(0, TOKENS, (5, 7))
    return Case(TorchEncoder(), mine, tokens)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def scrambled(tree: Any, low: float, high: float) -> Any:
    """Other numbers everywhere, so that no bias is 0, no scale 1 and no average at its start."""
    rng = np.random.default_rng(3)

    def one(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.asarray(rng.uniform(low, high, leaf.shape), leaf.dtype)

    return jax.tree.map(one, tree)


def outputs_of(net: torch.nn.Module, case: Case) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return net.eval()(case.for_torch()).numpy()


def there(case: Case, name: str, folder: Path) -> float:
    """The difference of a framework's outputs from torch's, with the weights of its file."""
    path, model = folder / "torch.safetensors", case.mine[name]
    safetensors.torch.save_file(case.theirs.state_dict(), path)
    like = model.init(jax.random.key(2), jnp.asarray(case.x))
    flattened = (case.flattened or {}).get(name)
    new = solstice.convert(path, like=like, layout="torch", flattened=flattened)
    outputs, _ = model.forward(*new, jnp.asarray(case.x), train=False)
    return float(np.abs(np.asarray(outputs) - outputs_of(case.theirs, case)).max())


def back(case: Case, name: str, folder: Path) -> float:
    """The difference of torch's outputs from a framework's, with the weights of that."""
    model, x = case.mine[name], jnp.asarray(case.x)
    params, state = model.init(jax.random.key(3), x)
    params, state = scrambled(params, -0.3, 0.3), scrambled(state, 0.5, 1.5)
    expected, _ = model.forward(params, state, x, train=False)
    net, path = type(case.theirs)(), folder / "back.safetensors"
    flattened = (case.flattened or {}).get("torch")
    solstice.convert((params, state), net.state_dict(), LAYOUTS[name], flattened=flattened, to=path)
    net.load_state_dict(safetensors.torch.load_file(path))
    return float(np.abs(np.asarray(expected) - outputs_of(net, case)).max())


# Keras, with images that have their channels last, as in Linen.


class LinenAttention(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(nn.LayerNorm(EPS)(x + nn.MultiHeadDotProductAttention(HEADS)(x, x)))


def keras_models() -> dict[str, tuple[Any, Model, np.ndarray[Any, Any]]]:
    """A model of Keras, the same in Linen, and inputs."""
    os.environ["KERAS_BACKEND"] = "jax"
    from keras import Input, Sequential, layers
    from keras import Model as Functional

    def norm() -> Any:
        return layers.BatchNormalization(epsilon=EPS)

    cnn = Sequential(
        [
            *(Input((8, 8, 1)), layers.Conv2D(4, 3, padding="same"), norm(), layers.ReLU()),
            *(layers.MaxPooling2D(2), layers.Conv2D(6, 3, padding="same", use_bias=False)),
            *(norm(), layers.ReLU(), layers.Flatten(), layers.Dense(10, activation="relu")),
            layers.Dense(10),
        ]
    )
    start = Input((7, WIDTH))
    attended = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(start, start)
    normed = layers.LayerNormalization(epsilon=EPS)(layers.Add()([start, attended]))
    attention = Functional(start, layers.Dense(3)(normed))
    return {
        "Keras CNN": (cnn, FlaxModel(LinenCNN()), normal(5, 8, 8, 1)),
        "attention": (attention, FlaxModel(LinenAttention()), normal(5, 7, WIDTH)),
    }


def keras_differences(net: Any, model: Model, x: np.ndarray[Any, Any]) -> list[float]:
    """The difference of Linen's outputs from those of Keras, and the other way round."""
    rng = np.random.default_rng(4)
    for weight in net.weights:
        low, high = (0.5, 1.5) if "variance" in weight.path else (-0.3, 0.3)
        weight.assign(rng.uniform(low, high, weight.shape))
    like = model.init(jax.random.key(2), jnp.asarray(x))
    new = solstice.convert(net, like=like, layout="keras")
    ours = np.asarray(model.forward(*new, jnp.asarray(x), train=False)[0])
    found = [float(np.abs(ours - np.asarray(net(x))).max())]
    new = (scrambled(like[0], -0.3, 0.3), scrambled(like[1], 0.5, 1.5))
    back = solstice.convert(new, like={w.path: w for w in net.weights}, layout="flax")
    for weight in net.weights:
        weight.assign(back[weight.path])
    ours = np.asarray(model.forward(*new, jnp.asarray(x), train=False)[0])
    return [*found, float(np.abs(ours - np.asarray(net(x))).max())]


def main() -> int:
    torch.manual_seed(0)
    cases = {"MLP": mlp(), "CNN": cnn()} | ({} if "--quick" in sys.argv else {"encoder": encoder()})
    with torch.no_grad():
        cases["CNN"].theirs(cases["CNN"].for_torch())  # in training, so that averages move
    worst = 0.0
    print(f"{'net':10}{'framework':12}{'from it':>14}{'to it':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for title, case in cases.items():
            for name in case.mine:
                found = [move(case, name, Path(folder)) for move in (there, back)]
                print(f"{title:10}{name:12}{found[0]:14.1e}{found[1]:14.1e}")
                worst = max(worst, *found)
    for title, nets in ({} if "--quick" in sys.argv else keras_models()).items():
        found = keras_differences(*nets)
        print(f"{title:10}{'linen':12}{found[0]:14.1e}{found[1]:14.1e}")
        worst = max(worst, *found)
    print(f"largest difference {worst:.1e} (asked: at most {BOUND:.0e})")
    return int(not worst <= BOUND)


if __name__ == "__main__":
    sys.exit(main())
