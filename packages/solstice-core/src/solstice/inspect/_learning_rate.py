"""Find a learning rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._callback import Callback, Record, Stop
from solstice._experiment import Experiment
from solstice._replace import replace
from solstice._trainer import Trainer
from solstice._types import Batch, Outs
from solstice.data._arrays import arrays_of
from solstice.data._source import open_source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_END = "hyperparams/learning_rate"
_DIVERGED = 4.0
"""Times the least loss at which there is no more to learn."""


@dataclass(frozen=True)
class LearningRates:
    """`solstice.find_learning_rate(...)`: the loss at each learning rate.

    Attributes:
        rates: the rates, rising, float64[n].
        losses: the smoothed loss of the batch at each, before its update, float64[n].
        suggestion: where the loss falls fastest.
    """

    rates: Any
    losses: Any
    suggestion: float

    def __repr__(self) -> str:
        return (
            f"LearningRates({len(self.rates)} from {self.rates[0]:.1e} to {self.rates[-1]:.1e}, "
            f"suggestion={self.suggestion:.1e})"
        )

    def plot(self, path: str | PathLike[str] | None = None) -> "Figure":
        """`found.plot("rates.png")`: loss over learning rate, with the suggestion marked.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from solstice.history._plot import Picture, save

        figure = Picture(figsize=(5, 3.4), layout="constrained")
        axes: Any = figure.add_subplot()
        axes.plot(self.rates, self.losses, color="#0072B2")
        axes.axvline(
            self.suggestion, color="#D55E00", linestyle="--", label=f"{self.suggestion:.1e}"
        )
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss, smoothed")
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
        return save(figure, path)


def find_learning_rate(
    experiment: Experiment,
    train_ds: Any,
    *,
    batch_size: int | None = None,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    metric: str = "loss",
    smooth: float = 0.9,
) -> LearningRates:
    """`found = solstice.find_learning_rate(exp, train_ds)`: train with a rising learning rate.

    From step to step the rate is multiplied by the same factor, until the loss is four times its
    least. The Experiment is not changed. Its optimiser must hold the rate in its state:

    ```python
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
    ```

    Args:
        experiment: where to start.
        train_ds: the data set, as for `Trainer.fit`; read again where it is shorter than `steps`.
        batch_size: examples in a batch, for data sets given as arrays.
        lowest: the first rate, more than 0.
        highest: the last rate, more than `lowest`.
        steps: how many rates to try, 10 or more.
        metric: the name of the loss among the metrics of the step.
        smooth: how much the smoothed loss keeps of itself from step to step, in [0, 1).

    Raises:
        ValueError: an argument is out of range, or no learning rate is to be found.
        KeyError: there is no such metric; the message lists those there are.

    The test is that of Smith, "Cyclical Learning Rates for Training Neural Networks" (2017).
    """
    if not 0 < lowest < highest or steps < 10 or not 0 <= smooth < 1:
        raise ValueError(
            f"lowest must be more than 0 and less than highest, steps 10 or more, and smooth in "
            f"[0, 1): {lowest=}, {highest=}, {steps=}, {smooth=}"
        )
    source = open_source(train_ds, "train_ds", batch_size)
    experiment = experiment.setup(arrays_of(source.first()))
    rates = np.geomspace(lowest, highest, steps)
    losses = _Losses(metric, smooth)
    trial = _Rising(experiment, jnp.asarray(rates, jnp.float32))
    Trainer([losses]).fit(trial, train_ds, max_steps=steps, batch_size=batch_size)
    found = np.asarray(losses.smoothed)
    rates = rates[: len(found)]
    slopes = np.gradient(found, np.log(rates))
    least = int(np.nanargmin(found)) + 1
    return LearningRates(rates, found, float(rates[np.nanargmin(slopes[:least])]))


class _Rising(Experiment):
    """An Experiment whose learning rate is another at each step."""

    inner: Experiment
    rates: Array
    index: Array

    def __init__(self, inner: Experiment, rates: Array) -> None:
        self.inner = inner
        self.rates = rates
        self.index = jnp.zeros((), jnp.int32)
        if not _places(inner):
            raise ValueError(
                "there is no learning rate in the state of the optimiser: make it with "
                "`optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`"
            )

    def train_step(self, batch: Batch) -> tuple[Self, Outs]:
        rate = self.rates[self.index]
        leaves, structure = _tree.flatten(self.inner)
        for place in _places(self.inner):
            leaves[place] = rate.astype(leaves[place].dtype)
        inner, outs = _tree.unflatten(structure, leaves).train_step(batch)
        return replace(self, inner=inner, index=self.index + 1), outs

    def eval_step(self, batch: Batch) -> tuple[Self, Outs]:
        return self, self.inner.eval_step(batch)[1]

    def check_batch(self, batch: Batch) -> None:
        self.inner.check_batch(batch)


def _places(experiment: Experiment) -> list[int]:
    """Which leaves are learning rates."""
    leaves = _tree.leaves_by_slashes(experiment).items()
    return [i for i, (p, leaf) in enumerate(leaves) if p.endswith(_END) and eqx.is_array(leaf)]


class _Losses(Callback):
    """Keeps the loss of each step, smoothed, and stops when it diverges."""

    needs = ("metrics",)

    def __init__(self, metric: str, smooth: float) -> None:
        self._metric = metric
        self._smooth = smooth
        self._mean = 0.0
        self._least = math.inf
        self.smoothed: list[float] = []

    def on_step_end(self, record: Record) -> None:
        loss = self._loss(record.metrics)
        self._mean = self._smooth * self._mean + (1 - self._smooth) * loss
        mean = self._mean / (1 - self._smooth**record.step)
        if not math.isfinite(mean) or mean > _DIVERGED * self._least > 0:
            raise Stop("the loss diverges")
        self.smoothed.append(mean)
        self._least = min(self._least, mean)

    def _loss(self, metrics: Mapping[str, Any]) -> float:
        if self._metric not in metrics:
            there = ", ".join(metrics) or "none"
            raise KeyError(f"there is no metric {self._metric!r}; there are: {there}")
        return float(metrics[self._metric])
