"""The networks in Keras 3: `model = keras_models.build(workload, steps_per_execution=32)`."""

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
from keras import layers, ops
from workloads import HEADS, LEARNING_RATE, Workload


def build(workload: Workload, steps_per_execution: int) -> keras.Model:
    """A compiled model that holds the workload's params."""
    if workload.kind == "mlp":
        model = _mlp(workload.sizes)
    else:
        model = _cnn() if workload.kind == "cnn" else _transformer(*workload.sizes)
    for name, arrays in workload.params.items():
        model.get_layer(name).set_weights(list(arrays.values()))
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE, epsilon=1e-8),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        steps_per_execution=steps_per_execution,
    )
    return model


def _mlp(sizes: tuple[int, ...]) -> keras.Model:
    hidden = [
        layers.Dense(size, activation="relu", name=f"dense{i}")
        for i, size in enumerate(sizes[1:-1])
    ]
    last = layers.Dense(sizes[-1], name=f"dense{len(hidden)}")
    return keras.Sequential([keras.Input((sizes[0],)), *hidden, last])


def _cnn() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu", name="conv0"),
            layers.AveragePooling2D(2),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv1"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(64, activation="relu", name="dense0"),
            layers.Dense(10, name="dense1"),
        ]
    )


class Positions(layers.Embedding):
    """An embedding of each position, to be added to the embedding of each token."""

    def call(self, tokens: Any) -> Any:
        return super().call(ops.arange(tokens.shape[1]))[None]


class Attention(layers.Layer):
    """Causal attention with four heads, over projections that are made outside of it."""

    def call(self, q: Any, k: Any, v: Any) -> Any:
        length, width = q.shape[1:]
        q, k, v = (ops.reshape(x, (-1, length, HEADS, width // HEADS)) for x in (q, k, v))
        y = ops.dot_product_attention(q, k, v, is_causal=True)
        return ops.reshape(y, (-1, length, width))


def _transformer(vocabulary: int, width: int, length: int) -> keras.Model:
    x = keras.Input((length,), dtype="int32")
    h = layers.Embedding(vocabulary, width, name="tokens")(x)
    h = h + Positions(length, width, name="positions")(x)
    for i in range(2):
        y = layers.LayerNormalization(epsilon=1e-6, name=f"norm{i}a")(h)
        y = Attention()(*(layers.Dense(width, name=f"{part}{i}")(y) for part in "qkv"))
        h = h + layers.Dense(width, name=f"o{i}")(y)
        y = layers.LayerNormalization(epsilon=1e-6, name=f"norm{i}b")(h)
        y = layers.Dense(4 * width, name=f"up{i}")(y)
        h = h + layers.Dense(width, name=f"down{i}")(ops.gelu(y, approximate=True))
    h = layers.LayerNormalization(epsilon=1e-6, name="norm")(h)
    return keras.Model(x, layers.Dense(vocabulary, name="head")(h))


def make_epochs(workload: Workload, steps_per_execution: int) -> Any:
    """`run_epoch = make_epochs(workload, 47)`: one `fit` of arrays, with its validations."""
    model = build(workload, steps_per_execution)
    size = len(workload.batches[0][1])
    validation = whole(workload.validation)
    arrays = {n: whole(workload.batches[:n]) for n in (1, len(workload.batches))}

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        first = len(batches) == 1  # the first step, without a validation
        history = model.fit(
            *arrays[len(batches)],
            batch_size=size,
            shuffle=False,
            epochs=1 if first else workload.epochs,
            validation_data=None if first else validation,
            validation_batch_size=size,
            verbose=0,
        )
        return {name: float(values[-1]) for name, values in history.history.items()}

    return run_epoch


def whole(batches: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The examples of all batches, one after the other, as Keras takes them."""
    x, y = map(np.concatenate, zip(*batches, strict=True))
    return x, y


def predictor(workload: Workload, steps_per_execution: int) -> keras.Model:
    """The model with a softmax on top, to predict with."""
    model = keras.Sequential([build(workload, 1), layers.Softmax()])
    model.compile(steps_per_execution=steps_per_execution)
    return model
