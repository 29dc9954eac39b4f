"""Minimal data set, optimiser and model for tests of adapters."""

# The trees here have leaves of any type, so pyright cannot check them.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice._arguments import number, whole
from solstice._trainer import Trainer
from solstice.compat import Model, Optimizer, OptState, Params, State
from solstice.experiments import ClassificationExperiment
from solstice.metrics import Sum
from solstice.testing._on_a_mesh import same_on_a_mesh

CLASSES, FEATURES = 3, 6


@jax.tree_util.register_static
@dataclass(eq=False)
class Sgd:
    """`Sgd(0.1)`: gradient descent with momentum, a minimal `Optimizer`."""

    rate: float = 0.1
    momentum: float = 0.9

    def __post_init__(self) -> None:
        self.rate = number("rate", self.rate)
        self.momentum = number("momentum", self.momentum)

    def init(self, params: Params, /) -> OptState:
        """`opt_state = optimizer.init(params)`: the velocity, zeros at first."""
        return jax.tree.map(jnp.zeros_like, params)

    def step(
        self, grads: Params, state: OptState, params: Params, /, **extra: object
    ) -> tuple[Params, OptState]:
        """`params, opt_state = optimizer.step(grads, opt_state, params)`."""
        del extra
        state = jax.tree.map(lambda v, g: self.momentum * v + g, state, grads)
        return jax.tree.map(lambda p, v: p - self.rate * v, params, state), state

    def eval_params(self, state: OptState, params: Params, /) -> Params:
        """`params = optimizer.eval_params(opt_state, params)`: the same params."""
        del state
        return params


@jax.tree_util.register_static
@dataclass(eq=False)
class Linear:
    """`Linear(3)`: a dense layer, a minimal `Model`."""

    size: int = CLASSES

    def __post_init__(self) -> None:
        self.size = whole("size", self.size)

    def init(self, key: Array, x: Array, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`: a kernel and a bias."""
        kernel = 0.1 * jax.random.normal(key, (x.shape[-1], self.size))
        return {"kernel": kernel, "bias": jnp.zeros(self.size)}, ()

    def forward(
        self, params: Params, state: State, x: Array, /, *, train: bool, key: object = None
    ) -> tuple[Array, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`."""
        del train, key
        return x @ params["kernel"] + params["bias"], state


def blobs(num_batches: int = 8, batch_size: int = 16) -> list[Any]:
    """`blobs()`: batches of points around one centre per class, which are easy to separate."""
    num_batches, batch_size = whole("num_batches", num_batches), whole("batch_size", batch_size)
    rng = np.random.default_rng(0)
    centres = 2 * np.eye(CLASSES, FEATURES, dtype=np.float32)
    labels = rng.integers(0, CLASSES, (num_batches, batch_size)).astype(np.int32)
    noise = rng.normal(scale=0.5, size=(*labels.shape, FEATURES)).astype(np.float32)
    return list(zip(centres[labels] + noise, labels, strict=True))


def train(model: Model, optimizer: Optimizer) -> float:
    """Trains a model on the blobs for eight epochs, and returns its accuracy."""
    experiment = ClassificationExperiment(model, optimizer, num_classes=CLASSES)
    trainer, data = Trainer(), blobs()
    return trainer.test(trainer.fit(experiment, data, num_epochs=8), data)["accuracy"]


def same_training(model: Model, optimizer: Optimizer) -> None:
    """Checks that an epoch, with a small last batch, gives the same on a mesh as on one device."""
    *full, (x, y) = blobs(num_batches=4)
    data = [*full, (x[:5], y[:5])]

    def run(trainer: Trainer) -> dict[str, float]:
        experiment = ClassificationExperiment(model, optimizer, num_classes=CLASSES, metrics=_count)
        trained = trainer.fit(experiment, data)
        [row] = trainer.history.rows
        tested = trainer.test(trained, data)
        return {"train/loss": row["loss"], "test/loss": tested["loss"]}

    same_on_a_mesh(run)


def _count(outputs: Any, labels: Any, mask: Array) -> Sum:
    """In place of the metrics of a classifier, which take longer to compile than the step."""
    del outputs, labels
    return Sum(mask)
