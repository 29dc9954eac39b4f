"""Learning rate finder: trains with a rising rate and suggests one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._arguments import number, positive, share, text, whole
from solstice._callback import Callback
from solstice._engine import MeshLike, Sharding
from solstice._experiment import Experiment, check_experiment, stacked_check_of
from solstice._per_member import is_vector
from solstice._rates import injected_rates, scaled_beside
from solstice._record import Record, Stop
from solstice._replace import replace
from solstice._trainer import Trainer
from solstice._types import Batch, Outputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAKE = "`optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`"
_DIVERGED = 4.0
"""The test ends when the loss exceeds its minimum by this factor."""

_FIRST = 10
"""Number of first rates to ignore (at most a tenth), since their mean is over few losses."""

_ROUNDING = 1e-6
"""The least relative fall of the loss; less may be rounding."""

_NOISE = 3.0
"""The least fall of the smoothed loss in standard deviations; less may be noise."""


@dataclass(frozen=True)
class LearningRates:
    """`found = solstice.find_learning_rate(...)`: the loss at each learning rate.

    Attributes:
        rates: the learning rates in increasing order, float64[n].
        losses: the smoothed loss at each rate, before its update, float64[n].
        suggestion: the rate at which the loss falls fastest, before its minimum.
    """

    rates: np.ndarray[Any, Any]
    losses: np.ndarray[Any, Any]
    suggestion: float

    def __repr__(self) -> str:
        return (
            f"LearningRates({len(self.rates)} from {self.rates[0]:.1e} to {self.rates[-1]:.1e}, "
            f"suggestion={self.suggestion:.1e})"
        )

    def plot(self, path: str | PathLike[str] | None = None) -> "Figure":
        """`found.plot("rates.png")`: plot the loss over the learning rate, with the suggestion.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from solstice._picture import Picture, save  # matplotlib is optional

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
    mesh: MeshLike | None = None,
    sharding: Sharding = "replicated",
) -> LearningRates:
    """`found = solstice.find_learning_rate(exp, train_ds)`: try rising rates, and suggest one.

    Each step multiplies the rate by the same factor, until the loss is four times its minimum. The
    Experiment does not change. Its optimiser must have the rate in its state, as a number; a
    schedule would override the rates of the test:

    ```python
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
    ```

    The first 10 rates and the last one are ignored. If the loss falls by less than its noise from
    batch to batch, a ValueError is raised.

    Args:
        experiment: the initial Experiment.
        train_ds: the data set, as for `Trainer.fit`; it is repeated if it has fewer batches than
            `steps`.
        batch_size: examples per batch, for data sets given as arrays.
        lowest: the first rate, above 0.
        highest: the last rate, above `lowest`.
        steps: number of rates to try, 10 or more.
        metric: the name of the loss among the metrics of the step.
        smooth: decay of the exponential moving average of the loss per step, in [0, 1).
        mesh: the devices, as of a `Trainer`.
        sharding: as of a `Trainer`. In a rule by path, the paths start with "inner/".

    Raises:
        ValueError: an argument is out of range; or the optimiser has no learning rate in its state,
            or overrides it; or the loss is not finite, diverges at once, or does not fall; or the
            Experiment is a population.
        KeyError: the metric does not exist; the message lists the existing ones.

    The method is the range test of Smith, "Cyclical Learning Rates for Training Neural Networks"
    (2017).
    """
    lowest, steps = positive("lowest", lowest), whole("steps", steps, 10)
    highest = number("highest", highest, f"more than lowest={lowest}", lambda x: x > lowest)
    smooth, metric = share("smooth", smooth), text("metric", metric, "loss")
    check_experiment(experiment)
    rates = np.geomspace(lowest, highest, steps)
    losses = _Losses(metric, smooth)
    start = jax.device_put((rates.astype(np.float32), np.int32(0)))
    trial = _Rising(experiment, *start)
    trainer = Trainer([losses], mesh=mesh, sharding=sharding)
    trial = trainer.fit(trial, train_ds, max_steps=steps, batch_size=batch_size)
    trial.check_obeyed()
    found = np.asarray(losses.smoothed)
    first = min(_FIRST, steps // 10)
    _check_enough(losses, rates, first)
    rates = rates[: len(found)]
    suggested = _steepest(found, _noise_of(losses.raw, smooth), first, smooth)
    if suggested is None:
        raise ValueError(
            f"the loss does not fall by more than its noise between the rates {rates[0]:.1e} and "
            f"{rates[-1]:.1e}: it is {found[first]:.4g} first and {found[first:].min():.4g} at "
            f"its minimum. Give a higher `highest`, more `steps` or larger batches, and check "
            f"that the model learns at all"
        )
    return LearningRates(rates, found, float(rates[suggested]))


def _check_enough(losses: "_Losses", rates: np.ndarray[Any, Any], first: int) -> None:
    """Raises a ValueError if too few rates were tried to estimate a slope."""
    tried = len(losses.smoothed)
    if tried >= first + 3:
        return
    if tried == 0:
        why = (
            f"the loss is {losses.raw[0]} before the first update. Check the data and the model: "
            f"the rate is not the cause"
        )
    else:
        why = (
            f"the loss is {losses.raw[-1]:.4g} after {tried} steps, at the rate "
            f"{rates[tried - 1]:.1e}, and was {losses.raw[0]:.4g}. Give a lower `lowest`"
        )
    raise ValueError(f"there are too few losses to find a learning rate: {why}")


def _noise_of(raw: list[float], smooth: float) -> float:
    """The standard deviation of the smoothed loss due to the choice of batches."""
    jumps = np.abs(np.diff(raw))
    # A robust estimate: the median of |x| is 0.6745 sigma, and a difference has variance 2 sigma^2.
    deviation = np.median(jumps) / 0.6745 / math.sqrt(2)
    return float(deviation) * math.sqrt((1 - smooth) / (1 + smooth))


def _steepest(losses: np.ndarray[Any, Any], noise: float, first: int, smooth: float) -> int | None:
    """The index of the steepest fall of the smoothed losses; None if they do not fall.

    It is after a tenth of the fall, to ignore a flat start, and before the minimum by the delay of
    the smoothed loss in steps, because after this training is about to diverge.
    """
    least = first + int(np.argmin(losses[first:-1]))
    fall = losses[first] - losses[least]
    if fall <= max(_NOISE * noise, _ROUNDING * abs(losses[first])):
        return None
    start = int(np.flatnonzero(losses[: least + 1] >= losses[first] - fall / 10)[-1])
    end = max(least - round(smooth / (1 - smooth)), start)
    return start + int(np.argmin(np.gradient(losses)[start : end + 1]))


class _Rising(Experiment):
    """An Experiment that sets the next learning rate before each step of another."""

    inner: Experiment
    rates: Array
    index: Array

    def setup(self, batch: Batch) -> Self:
        inner = self.inner.setup(batch)
        if not injected_rates(inner):
            raise ValueError(
                f"there is no learning rate in the state of the optimiser: create it with {_MAKE}"
            )
        beside = scaled_beside(inner)
        if beside is not None:
            raise ValueError(
                f"the optimiser scales its updates by a schedule beside the learning rate, whose "
                f"state is `{beside}`, so the test would report wrong rates: leave it out "
                f"here, and create the optimiser with {_MAKE}"
            )
        return replace(self, inner=inner)

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

    def stacked_check(self) -> Callable[[Batch], None] | None:
        return stacked_check_of(self.inner)

    def check_obeyed(self) -> None:
        """Raises a ValueError if the optimiser has replaced the last rate by another."""
        rates, index, found = jax.device_get((self.rates, self.index, injected_rates(self.inner)))
        asked = rates[index - 1]
        for path, rate in found.items():
            if not np.array_equal(rate, np.full_like(rate, asked)):
                raise ValueError(
                    f"the optimiser overrides the learning rate: `{path}` is {rate} after a step "
                    f"at {asked}, as with a schedule. Create it with {_MAKE}"
                )


class _Losses(Callback):
    """Records the raw and smoothed loss of each step, and stops the run when it diverges."""

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
        mean = self._mean / (1 - self._smooth**record.step)  # corrects for the start at 0
        # Only above 0: a log-likelihood may be negative, and has no multiple to exceed.
        if not math.isfinite(mean) or mean > _DIVERGED * self._least > 0:
            raise Stop("the loss diverges")
        self.smoothed.append(mean)
        self._least = min(self._least, mean)

    def _loss(self, metrics: Mapping[str, Any]) -> float:
        if self._metric not in metrics:
            there = ", ".join(metrics) or "none"
            raise KeyError(f"there is no metric {self._metric!r}; there are: {there}")
        loss = metrics[self._metric]
        if is_vector(loss):
            raise ValueError(
                f"the rate is that of one run, and the metric {self._metric!r} has a value for "
                f"each of {len(loss)} members: give one of them, as in "
                f"`solstice.find_learning_rate(pop[0], train_ds)`"
            )
        return float(loss)
