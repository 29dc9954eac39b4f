"""The networks in Flax Linen: `network = linen.build(workload)`."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from workloads import Workload, attend


class MLP(nn.Module):
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for i, size in enumerate(self.sizes[1:]):
            x = nn.Dense(size, name=f"dense{i}")(x)
            x = nn.relu(x) if i + 2 < len(self.sizes) else x
        return x


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.avg_pool(nn.relu(nn.Conv(16, (3, 3), name="conv0")(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(32, (3, 3), name="conv1")(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(64, name="dense0")(x.reshape((x.shape[0], -1))))
        return nn.Dense(10, name="dense1")(x)


class Transformer(nn.Module):
    vocabulary: int
    width: int
    length: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        h = nn.Embed(self.vocabulary, self.width, name="tokens")(x)
        h = h + nn.Embed(self.length, self.width, name="positions")(jnp.arange(self.length))[None]
        for i in range(2):
            y = nn.LayerNorm(name=f"norm{i}a")(h)
            y = attend(*(nn.Dense(self.width, name=f"{part}{i}")(y) for part in "qkv"))
            h = h + nn.Dense(self.width, name=f"o{i}")(y)
            y = nn.Dense(4 * self.width, name=f"up{i}")(nn.LayerNorm(name=f"norm{i}b")(h))
            h = h + nn.Dense(self.width, name=f"down{i}")(nn.gelu(y))
        return nn.Dense(self.vocabulary, name="head")(nn.LayerNorm(name="norm")(h))


def build(workload: Workload) -> nn.Module:
    """`network.apply({"params": workload.params}, x)` gives the logits."""
    if workload.kind == "mlp":
        return MLP(workload.sizes)
    return CNN() if workload.kind == "cnn" else Transformer(*workload.sizes)
