"""An adapter for the metrics of metrax, and others that are made like those of CLU."""

from typing import Any, Self, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from solstice import _tree
from solstice._arguments import shown, text
from solstice._metrics import Metrics
from solstice._replace import replace


def from_metrax(metric: Any, name: str | None = None) -> Metrics:
    """`from_metrax(metrax.SSIM.from_model_output(preds, images, max_val=1.0))`: as a Metrics.

    It takes each metric of metrax (`pip install google-metrax`), such as those of images, and of
    CLU, on which metrax rests. `compute()["ssim"]` is its value. Its sums are those of metrax: in
    float32, so they drift over a million batches, and with the names and the undefined values of
    metrax. Weights and masks are arguments of its `from_model_output`. The ready-made metrics of
    `solstice.metrics` are exact: prefer them where both exist.

    Args:
        metric: what `from_model_output` of the metric returned in a step.
        name: the name of its value; that of its class in lower case by default.

    Raises:
        TypeError: it is something else, such as a class, or cannot be merged.
    """
    return _FromMetrax(metric, name)


class _FromMetrax(Metrics):
    """The metrics that `from_metrax` makes."""

    metric: Any
    name: str = eqx.field(static=True)

    def __init__(self, metric: Any, name: str | None = None) -> None:
        kind = type(metric).__name__
        if isinstance(metric, type) or not hasattr(metric, "from_model_output"):
            raise TypeError(
                f"metric must be what a metric of metrax returns, such as "
                f"`metrax.SSIM.from_model_output(preds, images, max_val=1.0)`; it is "
                f"{shown(metric)}"
            )
        self.metric = _tree.map(_as_array, metric)
        self.name = text("name", kind.lower() if name is None else name, "ssim")
        try:
            jax.eval_shape(_merged, self.metric, self.metric)
        except NotImplementedError as error:
            raise TypeError(
                f"{kind} has no `merge`, so its value over several batches is unknown; collect the "
                f"outputs with `solstice.metrics.Collect`, and compute it from them"
            ) from error

    def merge(self, other: Any, /) -> Self:
        """`total = total.merge(metrics)`: the metric of the examples of both.

        Raises:
            ValueError: `other` is of another class, shape or setting, or has another name.
        """
        if _kind(self) != _kind(other):
            raise ValueError(
                f"cannot merge metrics of {_kind(self)} and {_kind(other)}: make both alike"
            )
        return replace(self, metric=_merged(self.metric, other.metric))

    def empty(self) -> Self:
        """`metrics.empty()`: metrics of zero examples, with sums of 0."""
        return replace(self, metric=_tree.map(_zeros, self.metric))

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["ssim"]`: the value by its name, or all values by their names."""
        found: Any = self.metric.compute()
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {self.name: found}


def _as_array(number: Any) -> Array:
    return jnp.asarray(number)


def _zeros(array: Array) -> Array:
    return jnp.zeros_like(array)


def _merged(one: Any, other: Any) -> Any:
    return one.merge(other)


def _kind(metrics: object) -> tuple[Any, list[Any]]:
    """The class, static settings and shapes of metrics."""
    leaves, structure = _tree.flatten(metrics)
    return structure, [leaf.shape for leaf in leaves]
