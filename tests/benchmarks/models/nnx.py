"""The networks in Flax NNX: `model = nnx.build(workload)`, which holds the workload's params."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from workloads import Workload, attend


class MLP(nnx.Module):
    def __init__(self, sizes: tuple[int, ...], rngs: nnx.Rngs) -> None:
        self.depth = len(sizes) - 1
        for i in range(self.depth):
            setattr(self, f"dense{i}", nnx.Linear(sizes[i], sizes[i + 1], rngs=rngs))

    def __call__(self, x: Any) -> Any:
        for i in range(self.depth):
            x = getattr(self, f"dense{i}")(x)
            x = nnx.relu(x) if i + 1 < self.depth else x
        return x


class CNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv0 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv1 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.pool = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.dense0 = nnx.Linear(7 * 7 * 32, 64, rngs=rngs)
        self.dense1 = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.pool(nnx.relu(self.conv0(x)))
        x = self.pool(nnx.relu(self.conv1(x)))
        return self.dense1(nnx.relu(self.dense0(x.reshape(x.shape[0], -1))))


class Transformer(nnx.Module):
    def __init__(self, vocabulary: int, width: int, length: int, rngs: nnx.Rngs) -> None:
        self.length = length
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        for i in range(2):
            for part in "ab":
                setattr(self, f"norm{i}{part}", nnx.LayerNorm(width, rngs=rngs))
            for part in "qkvo":
                setattr(self, f"{part}{i}", nnx.Linear(width, width, rngs=rngs))
            setattr(self, f"up{i}", nnx.Linear(width, 4 * width, rngs=rngs))
            setattr(self, f"down{i}", nnx.Linear(4 * width, width, rngs=rngs))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        h = self.tokens(x) + self.positions(jnp.arange(self.length))[None]
        for i in range(2):
            y = getattr(self, f"norm{i}a")(h)
            y = attend(*(getattr(self, f"{part}{i}")(y) for part in "qkv"))
            h = h + getattr(self, f"o{i}")(y)
            y = getattr(self, f"up{i}")(getattr(self, f"norm{i}b")(h))
            h = h + getattr(self, f"down{i}")(nnx.gelu(y))
        return self.head(self.norm(h))


def build(workload: Workload) -> nnx.Module:
    """`model(x)` gives the logits."""
    rngs = nnx.Rngs(0)
    if workload.kind == "mlp":
        model: nnx.Module = MLP(workload.sizes, rngs)
    elif workload.kind == "cnn":
        model = CNN(rngs)
    else:
        model = Transformer(*workload.sizes, rngs)
    for name, arrays in workload.params.items():
        for kind, array in arrays.items():
            setattr(getattr(model, name), kind, nnx.Param(jnp.array(array)))
    return model
