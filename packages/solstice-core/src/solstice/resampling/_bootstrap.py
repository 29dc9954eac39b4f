"""Bootstrap: metrics with error bars."""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from solstice import _tree
from solstice._arguments import instance, number, whole
from solstice._metrics import Metrics, by_name, computed
from solstice._replace import replace
from solstice._types import AnyArray
from solstice.resampling._distribution import ENDS, Distribution, is_real, values_of
from solstice.resampling._replicates import resampled


class Examples(eqx.Module):
    """The metrics of each example of one batch, or of the batches of one compiled call.

    Attributes:
        metrics: Metrics whose arrays have the examples on axis 0, after the steps if any.
        index: the number of each example in the data set.
        steps: how many steps of the call count; None without an axis of steps.
    """

    metrics: Metrics
    index: AnyArray
    steps: int | None = eqx.field(static=True, default=None)

    def on_axis_0(self) -> "Examples":
        """The same in NumPy, with the examples of all steps on axis 0."""
        if self.steps is None:
            return self

        def joined(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return array[: self.steps].reshape(-1, *array.shape[2:])

        return Examples(*_tree.map(joined, (self.metrics, self.index)))


class Bootstrap(Metrics):
    """`Bootstrap(each, index)`: metrics with error bars, from the metrics of each example.

    ```python
    each = jax.vmap(lambda loss: Mean(loss))(losses)      # arrays [n], one for each example
    values = Bootstrap(each, jnp.arange(n)).compute()
    values["mean"], values["mean_low"], values["mean_high"], values["mean_se"]
    ```

    `Resampled` makes it for the batches of a data set. `compute()` returns the values of the merged
    metrics, and for each that is a float, or an array of floats:

    - "<name>_low", "<name>_high": the bounds of its interval. Replicates are data sets in which
      each example is repeated as often as a Poisson(1) weight says; the bounds are their
      bias-corrected percentiles (Efron 1981), a little wider for few examples (Hesterberg 2015);
    - "<name>_se": its standard error, the standard deviation of the replicates.

    Counts, which are integers, have no error bars. A weight depends on the number of the example
    alone, so neither batches nor devices change the bounds. The metrics of each example are kept
    until `compute`; merging happens outside the compiled step.

    Args:
        metrics: Metrics whose arrays have the examples on axis 0, as `jax.vmap` makes them.
        index: the number of each example in the data set, integers of shape [n].
        confidence: the share of data sets whose interval contains the true value, in (0, 1).
        replicates: number of replicates, 20 or more. Fewer are faster, and less exact.
        seed: an integer, for other weights.

    Raises:
        TypeError: `metrics` is not a Metrics, or in `compute`, keeps the outputs of all examples.
        ValueError: a number is out of range, or metrics of other settings are merged.
    """

    parts: tuple[Examples, ...]
    confidence: float = eqx.field(static=True)
    replicates: int = eqx.field(static=True)
    seed: int = eqx.field(static=True)

    def __init__(
        self,
        metrics: Metrics,
        index: Array,
        *,
        confidence: float = 0.95,
        replicates: int = 1000,
        seed: int = 0,
    ) -> None:
        instance("metrics", metrics, Metrics, "Metrics, such as `jax.vmap(Mean)(losses)`")
        self.parts = (Examples(metrics, jnp.asarray(index)),)
        self.confidence, self.replicates, self.seed = check_settings(confidence, replicates, seed)

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: the examples of both.

        Raises:
            ValueError: `other` has another confidence, number of replicates or seed.
        """
        for name in ("confidence", "replicates", "seed"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"cannot merge Bootstrap of {name}={mine} and of {name}={theirs}")
        return replace(self, parts=(*self.parts, *other.parts))

    def of_steps(self, count: int) -> Self:
        """The metrics of the first `count` steps of a call, from arrays stacked over its steps."""
        [part] = self.parts
        return replace(self, parts=(replace(part, steps=count),))

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["accuracy_low"]`: the values, and the bounds of each float.

        While JAX traces, floats are NaN.
        """
        if any(isinstance(leaf, Tracer) for leaf in _tree.leaves(self)):
            return _traced(self.parts[0])
        found = Bootstrap.distribution(self)
        return found.with_bounds(self.confidence)

    def distribution(self) -> "Distribution":
        """`metrics.distribution().replicates["accuracy"]`: the values of all replicates."""
        parts = [part.on_axis_0() for part in jax.device_get(self.parts)]  # one transfer
        metrics, index = _tree.map(_joined, *((part.metrics, part.index) for part in parts))
        whole, each = resampled(metrics, index, self.replicates, self.seed)
        estimates = by_name(computed(whole))
        return Distribution.of(estimates, values_of(each), int(index.max()) + 1)


# Functions and no methods: Equinox makes a module of each method that is read from a module.


def check_settings(confidence: float, replicates: int, seed: int = 0) -> tuple[float, int, int]:
    """The checked settings of a bootstrap.

    Raises:
        ValueError: one is out of range.
    """
    return (
        number("confidence", confidence, "between 0 and 1", lambda x: 0 < x < 1),
        whole("replicates", replicates, 20),
        whole("seed", seed, 0, most=2**32 - 1),
    )


def _joined(*arrays: AnyArray) -> np.ndarray[Any, Any]:
    return np.concatenate(arrays)


def _traced(part: Examples) -> dict[str, Any]:
    """The names and shapes of all values, which are NaN."""

    def unknown(value: Any) -> Array:
        array = jnp.asarray(value)
        return jnp.full_like(array, jnp.nan) if is_real(array) else array

    one = {n: unknown(v) for n, v in by_name(computed(_tree.row(part.metrics, 0))).items()}
    real = {name: value for name, value in one.items() if is_real(value)}
    return one | {f"{name}_{end}": value for name, value in real.items() for end in ENDS}
