"""Distribution: the values of a data set and of its replicates, and the bounds from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import experimental

from solstice._bounds import ENDS
from solstice._metrics import Metrics, by_name, computed, takes_members
from solstice.metrics import Mapped
from solstice.resampling._intervals import FEWEST, interval

_Numpy: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Distribution:
    """`metrics.distribution()`: the values of a data set, and those of its replicates.

    Attributes:
        estimates: the values of the data set by name.
        replicates: the values of the replicates, arrays with the replicates on axis 0; of values
            that are floats or arrays of floats.
        num_examples: number of examples in the data set.
    """

    estimates: dict[str, Any]
    replicates: dict[str, _Numpy]
    num_examples: int

    @staticmethod
    def of(
        estimates: Mapping[str, Any], replicates: Mapping[str, _Numpy], num_examples: int
    ) -> "Distribution":
        """The distribution of the values that have one in each replicate."""
        there = {
            name: replicates[name]
            for name, value in estimates.items()
            if is_real(value) and name in replicates
            if replicates[name].shape[1:] == np.shape(value)
        }
        return Distribution(dict(estimates), there, num_examples)

    def with_bounds(self, confidence: float) -> dict[str, Any]:
        """The values, and for each float "<name>_low", "<name>_high" and "<name>_se"."""
        bounds = self._bounds(confidence)
        return {
            key: value
            for name, estimate in self.estimates.items()
            for key, value in {name: estimate, **bounds.get(name, {})}.items()
        }

    def _bounds(self, confidence: float) -> dict[str, dict[str, Any]]:
        if not self.replicates:
            return {}
        shapes = {name: each.shape[1:] for name, each in self.replicates.items()}
        each = np.concatenate([x.reshape(len(x), -1) for x in self.replicates.values()], axis=1)
        flat = np.concatenate([np.ravel(self.estimates[name]) for name in shapes])
        low, high = interval(flat, each, confidence, self.num_examples)
        error = np.where(self.num_examples < FEWEST, np.nan, standard_error(each))
        found = np.stack([low, high, error])
        stops = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
        parts = np.split(found, stops, axis=1)
        return {
            name: {
                f"{name}_{end}": _alike(row.reshape(shape), self.estimates[name])
                for end, row in zip(ENDS, part, strict=True)
            }
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }


def is_real(value: Any) -> bool:
    """Whether a value is a float or an array of floats; counts have no error bars."""
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    return jnp.issubdtype(dtype, jnp.floating)


def standard_error(replicates: _Numpy) -> _Numpy:
    """The standard deviation of the replicates, on axis 0; NaN is left out."""
    known = ~np.isnan(replicates)
    count = np.maximum(known.sum(axis=0), 1)
    with np.errstate(invalid="ignore"):  # of infinite values
        mean = np.where(known, replicates, 0).sum(axis=0) / count
        apart = np.where(known, replicates - mean, 0)
        return np.sqrt(np.square(apart).sum(axis=0) / count)


def _alike(bound: _Numpy, value: Any) -> Any:
    """A bound in the class of its value: a float, an array, or an array of members."""
    if isinstance(value, np.ndarray):
        return bound.view(cast("Any", type(cast("object", value))))
    return bound.item()


def values_of(replicates: Metrics) -> dict[str, _Numpy]:
    """The values of each replicate by name, float64 arrays with the replicates on axis 0."""
    if takes_members(replicates):
        return by_name(Mapped(replicates).compute())
    precision = _double_precision()
    try:
        with precision:
            found = jax.device_get(_together(replicates))
    except Exception:  # a `compute` that needs the host, or names values by their number
        found = by_name(Mapped(replicates).compute())
    return {name: np.asarray(value) for name, value in found.items()}


@eqx.filter_jit
def _together(replicates: Metrics) -> dict[str, Any]:
    """All in one compiled call, because 1,000 calls of `compute` take a second or more."""
    return by_name(jax.vmap(computed)(replicates))


def _double_precision() -> Any:
    # `jax.enable_x64` is new, and `jax.experimental.enable_x64` is deprecated where it is there.
    owner: Any = jax if hasattr(jax, "enable_x64") else experimental
    return owner.enable_x64(True)
