"""What is trained: `workload = workloads.get("A")`, then `workload.update` in any loop.

Each workload is NumPy batches in memory, NumPy parameters to begin with, and pure JAX functions.
The layers are named, and hold "kernel", "bias", "scale" or "embedding" as in Flax, so that every
framework begins with the same numbers.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

LEARNING_RATE = 1e-3
HEADS = 4


@dataclass(frozen=True)
class Workload:
    """What a contender is given.

    Attributes:
        name: "A", "B32", ..., or "leaves-10" for a step that does next to nothing to 10 arrays.
        title: what it is, in words.
        kind: "mlp", "cnn", "transformer", "embedding" or "leaves".
        sizes: of an MLP the widths of its layers, of a transformer (vocabulary, width, length).
        params: NumPy arrays, `params["dense0"]["kernel"]`.
        batches: an epoch, a list of (x, y).
        logits: `logits(params, x)`.
        validation: the batches of a validation after each epoch; none for most workloads.
        epochs: how often a contender trains the batches, and validates, each time it is asked.
    """

    name: str
    title: str
    kind: str
    sizes: tuple[int, ...]
    params: dict[str, Any]
    batches: list[tuple[np.ndarray, np.ndarray]]
    logits: Callable[[Any, Any], Any]
    validation: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    epochs: int = 1

    @property
    def classes(self) -> int:
        """How many classes the labels have."""
        return {"mlp": self.sizes[-1:], "transformer": self.sizes[:1]}.get(self.kind, (10,))[0]

    @property
    def unit(self) -> str:
        """What is timed: a "step", or an "epoch" with its validation."""
        return "epoch" if self.epochs > 1 else "step"

    @property
    def units(self) -> int:
        """How many of these a contender does each time it is asked."""
        return self.epochs if self.epochs > 1 else len(self.batches)

    def init(self) -> tuple[Any, Any]:
        """`params, opt_state = workload.init()`: new JAX arrays to begin with."""
        params = jax.tree.map(jnp.array, self.params)
        return params, (() if self.kind == "leaves" else optimizer().init(params))

    def update(self, params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, dict[str, Any]]:
        """`params, opt_state, metrics = workload.update(params, opt_state, batch)`: one step.

        The metrics are "loss" and "accuracy" of the batch; since all batches of an epoch are of
        one size, those of an epoch are their means.
        """
        if self.kind == "leaves":
            mean = jnp.mean(batch[0])
            return jax.tree.map(lambda x: x + 1, params), (), {"loss": mean, "accuracy": mean}
        (loss, accuracy), grads = jax.value_and_grad(self.loss, has_aux=True)(params, batch)
        updates, opt_state = optimizer().update(grads, opt_state, params)
        return (
            optax.apply_updates(params, updates),
            opt_state,
            {"loss": loss, "accuracy": accuracy},
        )

    def metrics(self, params: Any, batch: Any) -> dict[str, Any]:
        """`workload.metrics(params, batch)["loss"]`: of an evaluation of one batch."""
        loss, accuracy = self.loss(params, batch)
        return {"loss": loss, "accuracy": accuracy}

    def loss(self, params: Any, batch: Any) -> tuple[Any, Any]:
        """`loss, accuracy = workload.loss(params, batch)`: means over the batch."""
        x, y = batch
        return loss_and_accuracy(self.logits(params, x), y)


def get(name: str, steps: int | None = None) -> Workload:
    """`workload = get("A")`: one of `tables.TABLES` by name; `steps` makes its epoch shorter."""
    kind, _, more = name.partition("-")
    if kind == "leaves":
        count = int(more)
        return _leaves(name, count, steps or max(40_960 // count, 128))
    alike = ALIKE.get(name) or ALIKE.get(kind)
    if alike:
        like, count = alike
        return replace(get(like, steps or count), name=name)
    make, count, arguments = {
        "A": (_mlp, 960, ("MLP 784-64-10, batch 32", (784, 64, 10), 32)),
        "B32": (_mlp, 480, ("MLP 784-200-200-10, batch 32", (784, 200, 200, 10), 32)),
        "B128": (_mlp, 240, ("MLP 784-200-200-10, batch 128", (784, 200, 200, 10), 128)),
        "C": (_cnn, 32, ("CNN of 16 and 32 channels, 28x28 images, batch 64", 64)),
        "D": (_transformer, 32, ("transformer, 2 layers, width 64, length 64, batch 16", 16)),
        "E": (_small_epochs, 47, ("MLP 64-64-10, batch 32, a validation after each epoch", 10, 20)),
        "F-layers": (_mlp, 32, ("24 layers of 1024x1024, batch 8", (1024,) * 25, 8)),
        "F-embedding": (_embedding, 16, ("embedding of 1,000,000 x 32, batch 32", 10**6, 32, 32)),
    }[name]
    return make(name, steps or count, *arguments)


ALIKE = {
    "evaluation": ("A", 800),
    "prediction": ("A", 800),
    "reading": ("A", 320),
    "population-A": ("A", 960),
    "population-E": ("E", 47),
}
"""Workloads that are another one, with fewer batches, for other things than training alone."""


class NotHereError(Exception):
    """A contender needs a library, or a version of one, that is not here."""


def optimizer() -> optax.GradientTransformation:
    """`tx = optimizer()`: Adam, the same for all."""
    return optax.adam(LEARNING_RATE)


def loss_and_accuracy(logits: Any, labels: Any) -> tuple[Any, Any]:
    """`loss, accuracy = loss_and_accuracy(logits, labels)`: means over the batch, in JAX."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))


def zeros() -> dict[str, Any]:
    """`total = zeros()`: metrics of no step."""
    return {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())}


def add(total: Any, metrics: Any) -> Any:
    """`total = add(total, metrics)`."""
    return jax.tree.map(jnp.add, total, metrics)


def means(total: Any, steps: int) -> dict[str, float]:
    """`means(total, steps)["loss"]`: Python numbers, read back from the device."""
    return {name: float(value) / steps for name, value in jax.device_get(total).items()}


def of_predictions(outputs: np.ndarray) -> dict[str, float]:
    """`of_predictions(outputs)`: one number of all outputs, to compare contenders by."""
    return {"loss": float(outputs[:, 0].mean()), "accuracy": 0.0}


def of_validation(found: dict[str, float]) -> dict[str, float]:
    """`of_validation({"loss": 1.0}) == {"val_loss": 1.0}`."""
    return {f"val_{name}": value for name, value in found.items()}


def _mlp(name: str, steps: int, title: str, sizes: tuple[int, ...], batch_size: int) -> Workload:
    rng = np.random.default_rng(0)
    params = {f"dense{i}": _dense(rng, *pair) for i, pair in enumerate(itertools.pairwise(sizes))}

    def logits(params: Any, x: Any) -> Any:
        for i in range(len(params)):
            x = _apply_dense(params[f"dense{i}"], x)
            x = jax.nn.relu(x) if i + 1 < len(params) else x
        return x

    batches = _images(rng, steps, batch_size, sizes[:1], sizes[-1])
    return Workload(name, title, "mlp", sizes, params, batches, logits)


def _small_epochs(name: str, steps: int, title: str, validation: int, epochs: int) -> Workload:
    workload = _mlp(name, steps + validation, title, (64, 64, 10), 32)
    batches = workload.batches
    return replace(workload, batches=batches[:steps], validation=batches[steps:], epochs=epochs)


def _embedding(
    name: str, steps: int, title: str, rows: int, width: int, batch_size: int
) -> Workload:
    """The mean of 8 rows of a large table, and one layer on top: nearly all is state."""
    rng = np.random.default_rng(0)
    params = {
        "rows": {"embedding": _normal(rng, (rows, width), width)},
        "dense0": _dense(rng, width, 10),
    }

    def logits(params: Any, x: Any) -> Any:
        return _apply_dense(params["dense0"], params["rows"]["embedding"][x].mean(1))

    batches = [
        (rng.integers(rows, size=(batch_size, 8), dtype=np.int32), _labels(rng, batch_size))
        for _ in range(steps)
    ]
    return Workload(name, title, "embedding", (rows, width), params, batches, logits)


def _cnn(name: str, steps: int, title: str, batch_size: int) -> Workload:
    rng = np.random.default_rng(0)
    params = {
        "conv0": {"kernel": _normal(rng, (3, 3, 1, 16), 9), "bias": _zeros(16)},
        "conv1": {"kernel": _normal(rng, (3, 3, 16, 32), 144), "bias": _zeros(32)},
        "dense0": _dense(rng, 7 * 7 * 32, 64),
        "dense1": _dense(rng, 64, 10),
    }

    def logits(params: Any, x: Any) -> Any:
        for layer in ("conv0", "conv1"):
            x = jax.lax.conv_general_dilated(
                x,
                params[layer]["kernel"],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = _average_pool(jax.nn.relu(x + params[layer]["bias"]))
        x = jax.nn.relu(_apply_dense(params["dense0"], x.reshape(x.shape[0], -1)))
        return _apply_dense(params["dense1"], x)

    batches = _images(rng, steps, batch_size, (28, 28, 1))
    return Workload(name, title, "cnn", (), params, batches, logits)


def _transformer(name: str, steps: int, title: str, batch_size: int) -> Workload:
    rng = np.random.default_rng(0)
    vocabulary, width, length = 64, 64, 64
    params = {
        "tokens": {"embedding": _normal(rng, (vocabulary, width), width)},
        "positions": {"embedding": _normal(rng, (length, width), width)},
    }
    for layer in range(2):
        params |= {f"norm{layer}a": _norm(width), f"norm{layer}b": _norm(width)}
        params |= {f"{part}{layer}": _dense(rng, width, width) for part in "qkvo"}
        params |= {f"up{layer}": _dense(rng, width, 4 * width)}
        params |= {f"down{layer}": _dense(rng, 4 * width, width)}
    params |= {"norm": _norm(width), "head": _dense(rng, width, vocabulary)}

    def logits(params: Any, x: Any) -> Any:
        h = params["tokens"]["embedding"][x] + params["positions"]["embedding"][None]
        for i in range(2):
            y = _apply_norm(params[f"norm{i}a"], h)
            y = attend(*(_apply_dense(params[f"{part}{i}"], y) for part in "qkv"))
            h = h + _apply_dense(params[f"o{i}"], y)
            y = _apply_dense(params[f"up{i}"], _apply_norm(params[f"norm{i}b"], h))
            h = h + _apply_dense(params[f"down{i}"], jax.nn.gelu(y))
        return _apply_dense(params["head"], _apply_norm(params["norm"], h))

    follows = rng.permutation(vocabulary)
    batches = []
    for _ in range(steps):
        tokens = np.empty((batch_size, length + 1), np.int32)
        tokens[:, 0] = rng.integers(vocabulary, size=batch_size)
        for at in range(length):
            random = rng.integers(vocabulary, size=batch_size)
            keeps = rng.random(batch_size) < 0.8
            tokens[:, at + 1] = np.where(keeps, follows[tokens[:, at]], random)
        batches.append((tokens[:, :-1].copy(), tokens[:, 1:].copy()))
    sizes = (vocabulary, width, length)
    return Workload(name, title, "transformer", sizes, params, batches, logits)


def attend(q: Any, k: Any, v: Any) -> Any:
    """`attend(q, k, v)`: causal attention with `HEADS` heads, in JAX, f32[batch, length, width]."""
    batch, length, width = q.shape
    q, k, v = (x.reshape(batch, length, HEADS, width // HEADS) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(batch, length, width)


def _leaves(name: str, count: int, steps: int) -> Workload:
    params = {f"leaf{i:04}": np.zeros(8, np.float32) for i in range(count)}
    batches = [(np.ones((8,), np.float32), np.zeros((8,), np.int32)) for _ in range(steps)]
    return Workload(name, f"{count} leaves", "leaves", (), params, batches, lambda params, x: x)


def _images(
    rng: np.random.Generator, steps: int, batch_size: int, shape: tuple[int, ...], classes: int = 10
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noise, labelled by a linear teacher, so that there is something to learn."""
    size = math.prod(shape)
    teacher = rng.normal(size=(size, classes)).astype(np.float32)
    batches = []
    for _ in range(steps):
        x = rng.normal(size=(batch_size, size)).astype(np.float32)
        batches.append((x.reshape(batch_size, *shape), (x @ teacher).argmax(-1).astype(np.int32)))
    return batches


def _labels(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(10, size=count, dtype=np.int32)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    return (rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)


def _zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.float32)


def _dense(rng: np.random.Generator, size_in: int, size_out: int) -> dict[str, np.ndarray]:
    return {"kernel": _normal(rng, (size_in, size_out), size_in), "bias": _zeros(size_out)}


def _norm(size: int) -> dict[str, np.ndarray]:
    return {"scale": np.ones(size, np.float32), "bias": _zeros(size)}


def _apply_dense(layer: Any, x: Any) -> Any:
    return x @ layer["kernel"] + layer["bias"]


def _apply_norm(layer: Any, x: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * layer["scale"] + layer["bias"]


def _average_pool(x: Any) -> Any:
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return total / 4
