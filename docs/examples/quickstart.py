"""Train the same classifier in five frameworks, and compare: `nox -s quickstart`.

python docs/examples/quickstart.py                    # scikit-learn's digits, 8x8
python docs/examples/quickstart.py --dataset mnist    # 28x28; downloads through tfds
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from jax.example_libraries import stax

import solstice
from solstice.callbacks import ProgressBar

HIDDEN, CLASSES = 128, 10


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(HIDDEN)(x))
        x = nn.relu(nn.Dense(HIDDEN)(x))
        return nn.Dense(CLASSES)(x)


class NNXMLP(nnx.Module):
    def __init__(self, features, rngs):
        self.first = nnx.Linear(features, HIDDEN, rngs=rngs)
        self.second = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.last = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.second(nnx.relu(self.first(x)))))


def haiku_mlp(x):
    return hk.nets.MLP([HIDDEN, HIDDEN, CLASSES])(x)


def stax_mlp():
    return stax.serial(
        stax.Dense(HIDDEN), stax.Relu, stax.Dense(HIDDEN), stax.Relu, stax.Dense(CLASSES)
    )


def models(features: int) -> dict[str, Any]:
    """The same network in five frameworks, for flat inputs of so many features."""
    return {
        "Flax Linen": LinenMLP(),
        "Flax NNX": NNXMLP(features, nnx.Rngs(0)),
        "Haiku": hk.transform(haiku_mlp),
        "Stax": stax_mlp(),
        "Equinox": eqx.nn.MLP(features, CLASSES, HIDDEN, depth=2, key=jax.random.key(0)),
    }


def load_digits() -> tuple[Any, Any]:
    """1,797 real handwritten digits that scikit-learn ships; a sixth is for testing."""
    from sklearn.datasets import load_digits as load

    x, y = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x / 16).astype(np.float32)[order], y[order]
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


def load_mnist() -> tuple[Any, Any]:
    """70,000 handwritten digits, downloaded by tensorflow_datasets."""
    import tensorflow_datasets as tfds

    def split(name: str) -> tuple[Any, Any]:
        x, y = tfds.as_numpy(tfds.load("mnist", split=name, as_supervised=True, batch_size=-1))
        return x.reshape(len(x), -1).astype(np.float32) / 255, y

    return split("train"), split("test")


class Curve(solstice.Callback):
    """Collects the training loss of each epoch, and its examples per second."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_epoch_start(self, record: solstice.Record) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, record: solstice.Record) -> None:
        self.losses.append(record.metrics["loss"])
        self.rates.append(record.num_examples / (time.perf_counter() - self.began))


def run(model: Any, train_ds: Any, test_ds: Any, num_epochs: int) -> dict[str, Any]:
    """Train one model; its test accuracy, speed, size and loss curve."""
    exp = solstice.ClassificationExperiment(model, optax.adam(2e-3), num_classes=CLASSES)
    curve = Curve()
    exp = exp.train(
        train_ds, num_epochs=num_epochs, batch_size=32, callbacks=[ProgressBar(), curve]
    )
    return {
        "accuracy": exp.test(test_ds, batch_size=100, callbacks=[])["accuracy"],
        "rate": np.median(curve.rates[1:] or curve.rates),  # the first epoch compiles
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(exp.params)),
        "losses": curve.losses,
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    print(f"\n{'framework':<12}{'test accuracy':>15}{'examples/s':>13}{'parameters':>13}")
    for name, r in results.items():
        print(f"{name:<12}{r['accuracy']:>15.2%}{r['rate']:>13,.0f}{r['parameters']:>13,}")


def plot(results: dict[str, dict[str, Any]], dataset: str, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, r in results.items():
        axes.plot(range(1, len(r["losses"]) + 1), r["losses"], label=name)
    axes.set(
        xlabel="epoch",
        ylabel="training loss",
        yscale="log",
        title=f"One Experiment, five frameworks: {dataset}",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--num-epochs", type=int, default=None, help="default: 20, or 3 for mnist")
    parser.add_argument("--plot", type=Path, default=Path("quickstart.png"), help="where to save")
    args = parser.parse_args()

    load: Callable[[], Any] = load_digits if args.dataset == "digits" else load_mnist
    train_ds, test_ds = load()
    num_epochs = args.num_epochs or (20 if args.dataset == "digits" else 3)
    results = {}
    for name, model in models(train_ds[0].shape[1]).items():
        print(f"\n{name}", flush=True)
        results[name] = run(model, train_ds, test_ds, num_epochs)
    print_table(results)
    plot(results, args.dataset, args.plot)
    print(f"\nThe loss curves are in {args.plot.resolve()}")


if __name__ == "__main__":
    main()
