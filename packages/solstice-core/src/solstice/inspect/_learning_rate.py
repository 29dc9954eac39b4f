"""Find a learning rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._arguments import number, positive, share, text, whole
from solstice._callback import Callback
from solstice._experiment import Experiment, check_experiment
from solstice._rates import injected_rates, scaled_beside
from solstice._record import Record, Stop
from solstice._replace import replace
from solstice._trainer import Trainer
from solstice._types import Batch, Outputs
from solstice.data._arrays import arrays_of
from solstice.data._source import open_source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAKE = "`optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`"
_DIVERGED = 4.0
"""Times the least loss at which there is no more to learn."""

_FIRST = 10
"""Rates of the start that suggest nothing, or a tenth of few: the mean is of few losses there."""

_ROUNDING = 1e-6
"""Of the loss, that it must fall too."""

_NOISE = 3.0
"""Times its standard deviation that the smoothed loss must fall, or it is noise that falls."""


@dataclass(frozen=True)
class LearningRates:
    """`solstice.find_learning_rate(...)`: the loss at each learning rate.

    Attributes:
        rates: the rates, rising, float64[n].
        losses: the smoothed loss of the batch at each, before its update, float64[n].
        suggestion: where the loss falls fastest, between its start and its least.
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
    least. The Experiment is not changed. Its optimiser must hold the rate in its state, as a number
    and not as a schedule, which would overrule the rates:

    ```python
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
    ```

    What the first 10 rates and the last show suggests nothing. Neither does a fall of the loss
    within its noise from batch to batch: that is an error.

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
        ValueError: an argument is out of range; or the optimiser has no learning rate in its state,
            or overrules it; or the loss is not finite, diverges at once, or does not fall.
        KeyError: there is no such metric; the message lists those there are.

    The test is that of Smith, "Cyclical Learning Rates for Training Neural Networks" (2017).
    """
    lowest, steps = positive("lowest", lowest), whole("steps", steps, 10)
    highest = number("highest", highest, f"more than lowest={lowest}", lambda x: x > lowest)
    smooth, metric = share("smooth", smooth), text("metric", metric, "loss")
    check_experiment(experiment)
    source = open_source(train_ds, "train_ds", batch_size)
    experiment = experiment.setup(arrays_of(source.first()))
    rates = np.geomspace(lowest, highest, steps)
    losses = _Losses(metric, smooth)
    trial = _Rising(experiment, jnp.asarray(rates, jnp.float32))
    trial = Trainer([losses]).fit(trial, train_ds, max_steps=steps, batch_size=batch_size)
    trial.check_obeyed()
    found = np.asarray(losses.smoothed)
    first = min(_FIRST, steps // 10)
    _check_enough(losses, rates, first)
    rates = rates[: len(found)]
    suggested = _steepest(found, _noise_of(losses.raw, smooth), first, smooth)
    if suggested is None:
        raise ValueError(
            f"the loss does not fall by more than its noise between the rates {rates[0]:.1e} and "
            f"{rates[-1]:.1e}: it is {found[first]:.4g} first and {found[first:].min():.4g} at the "
            f"least. Give a higher `highest`, more `steps` or larger batches, and look whether the "
            f"model learns at all"
        )
    return LearningRates(rates, found, float(rates[suggested]))


def _check_enough(losses: "_Losses", rates: Any, first: int) -> None:
    """Raises a ValueError where too few rates were tried to tell a slope."""
    tried = len(losses.smoothed)
    if tried >= first + 3:
        return
    if tried == 0:
        why = (
            f"the loss is {losses.raw[0]} before the first update. Look at the data and the model: "
            f"no rate does this"
        )
    else:
        why = (
            f"the loss is {losses.raw[-1]:.4g} after {tried} steps, at the rate "
            f"{rates[tried - 1]:.1e}, and was {losses.raw[0]:.4g}. Give a lower `lowest`"
        )
    raise ValueError(f"there are too few losses to find a learning rate: {why}")


def _noise_of(raw: list[float], smooth: float) -> float:
    """The standard deviation of the smoothed loss that comes of the choice of batches."""
    jumps = np.abs(np.diff(raw))
    deviation = np.median(jumps) / 0.6745 / math.sqrt(2)  # of a normal distribution, robustly
    return float(deviation) * math.sqrt((1 - smooth) / (1 + smooth))


def _steepest(losses: Any, noise: float, first: int, smooth: float) -> int | None:
    """The index at which smoothed losses fall fastest; None if they do not fall.

    It lies after a tenth of the fall, so that a flat start suggests nothing, and before the
    least, by as many steps as the smoothed loss comes late: beyond, training is about to diverge.
    """
    least = first + int(np.argmin(losses[first:-1]))
    fall = losses[first] - losses[least]
    if fall <= max(_NOISE * noise, _ROUNDING * abs(losses[first])):
        return None
    start = int(np.flatnonzero(losses[: least + 1] >= losses[first] - fall / 10)[-1])
    end = max(least - round(smooth / (1 - smooth)), start)
    return start + int(np.argmin(np.gradient(losses)[start : end + 1]))


class _Rising(Experiment):
    """An Experiment whose learning rate is another at each step."""

    inner: Experiment
    rates: Array
    index: Array

    def __init__(self, inner: Experiment, rates: Array) -> None:
        self.inner = inner
        self.rates = rates
        self.index = jnp.zeros((), jnp.int32)
        if not injected_rates(inner):
            raise ValueError(
                f"there is no learning rate in the state of the optimiser: make it with {_MAKE}"
            )
        beside = scaled_beside(inner)
        if beside is not None:
            raise ValueError(
                f"the optimiser scales its updates by a schedule beside the learning rate, whose "
                f"state is `{beside}`, so that the rates would not be those tried: leave it out "
                f"here, and make the optimiser with {_MAKE}"
            )

    def train_step(self, batch: Batch) -> tuple[Self, Outputs]:
        rate = self.rates[self.index]
        injected = injected_rates(self.inner)
        leaves = _tree.leaves_by_slashes(self.inner)
        leaves |= {path: jnp.full_like(leaf, rate) for path, leaf in injected.items()}
        inner = _tree.unflatten(_tree.structure(self.inner), leaves.values())
        inner, outputs = inner.train_step(batch)
        return replace(self, inner=inner, index=self.index + 1), outputs

    def eval_step(self, batch: Batch) -> tuple[Self, Outputs]:
        return self, self.inner.eval_step(batch)[1]

    def check_batch(self, batch: Batch) -> None:
        self.inner.check_batch(batch)

    def check_obeyed(self) -> None:
        """Raises a ValueError where the optimiser has put another rate in place of the last one."""
        asked = self.rates[self.index - 1]
        for path, rate in injected_rates(self.inner).items():
            if not np.array_equal(rate, jnp.full_like(rate, asked)):
                raise ValueError(
                    f"the optimiser overrules the learning rate: `{path}` is {rate} after a step "
                    f"at {asked}, as it is where the rate is a schedule. Make it with {_MAKE}"
                )


class _Losses(Callback):
    """Keeps the loss of each step, smoothed, and stops when it diverges."""

    needs = ("metrics",)

    def __init__(self, metric: str, smooth: float) -> None:
        self._metric = metric
        self._smooth = smooth
        self._mean = 0.0
        self._least = math.inf
        self.raw: list[float] = []
        self.smoothed: list[float] = []

    def on_step_end(self, record: Record) -> None:
        loss = self._loss(record.metrics)
        self.raw.append(loss)
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
