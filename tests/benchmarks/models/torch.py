"""The networks in PyTorch: `model = torch_models.build(workload)`."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from workloads import HEADS, Workload


class MLP(nn.Module):
    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.depth = len(sizes) - 1
        for i in range(self.depth):
            self.add_module(f"dense{i}", nn.Linear(sizes[i], sizes[i + 1]))

    def forward(self, x: Any) -> Any:
        for i in range(self.depth):
            x = getattr(self, f"dense{i}")(x)
            x = functional.relu(x) if i + 1 < self.depth else x
        return x


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, 16, 3, padding="same")
        self.conv1 = nn.Conv2d(16, 32, 3, padding="same")
        self.dense0 = nn.Linear(7 * 7 * 32, 64)
        self.dense1 = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        x = x.permute(0, 3, 1, 2)
        x = functional.avg_pool2d(functional.relu(self.conv0(x)), 2)
        x = functional.avg_pool2d(functional.relu(self.conv1(x)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        return self.dense1(functional.relu(self.dense0(x)))


class Transformer(nn.Module):
    def __init__(self, vocabulary: int, width: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        for i in range(2):
            for part in "ab":
                self.add_module(f"norm{i}{part}", nn.LayerNorm(width, eps=1e-6))
            for part in "qkvo":
                self.add_module(f"{part}{i}", nn.Linear(width, width))
            self.add_module(f"up{i}", nn.Linear(width, 4 * width))
            self.add_module(f"down{i}", nn.Linear(4 * width, width))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Any) -> Any:
        h = self.tokens(x.long()) + self.positions.weight[None]
        for i in range(2):
            y = getattr(self, f"norm{i}a")(h)
            y = _attend(*(getattr(self, f"{part}{i}")(y) for part in "qkv"))
            h = h + getattr(self, f"o{i}")(y)
            y = getattr(self, f"up{i}")(getattr(self, f"norm{i}b")(h))
            h = h + getattr(self, f"down{i}")(functional.gelu(y, approximate="tanh"))
        return self.head(self.norm(h))


def _attend(q: Any, k: Any, v: Any) -> Any:
    batch, length, width = q.shape
    q, k, v = (x.view(batch, length, HEADS, width // HEADS).transpose(1, 2) for x in (q, k, v))
    y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).reshape(batch, length, width)


def build(workload: Workload) -> nn.Module:
    """`model(x)` gives the logits; it holds the workload's params."""
    if workload.kind == "mlp":
        model: nn.Module = MLP(workload.sizes)
    else:
        model = CNN() if workload.kind == "cnn" else Transformer(*workload.sizes)
    model.load_state_dict(
        {
            f"{name}.{'bias' if kind == 'bias' else 'weight'}": torch.tensor(_turned(kind, array))
            for name, arrays in workload.params.items()
            for kind, array in arrays.items()
        }
    )
    return model


def _turned(kind: str, array: np.ndarray) -> np.ndarray:
    """A kernel with its axes in the order that PyTorch has them in."""
    if kind != "kernel":
        return array
    return np.ascontiguousarray(array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1))


def loss_and_accuracy(logits: Any, labels: Any) -> tuple[Any, Any]:
    """`loss, accuracy = loss_and_accuracy(logits, labels)`: means over the batch."""
    logits, labels = logits.flatten(0, -2), labels.flatten().long()
    return functional.cross_entropy(logits, labels), (logits.argmax(-1) == labels).float().mean()
