"""The stepping seam: one compiled call takes a step and merges its metrics."""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._data import arrays_of
from solstice._experiment import Experiment
from solstice._metrics import Metrics, as_metrics
from solstice._program import Program, pack, prepare, unpack
from solstice._types import Batch, Outs

_IN_FLIGHT = 16
"""Steps dispatched and not yet finished, at the most: without a bound, batches fill the memory."""


class Stepper:
    """Takes steps of one kind, from one Experiment on. Nothing is read back.

    Args:
        experiment: where to start. It is not changed, and stays valid.
        method: "train_step", "eval_step" or "predict_step".
        batch: one like those to come; the step is checked with it before it runs.

    Raises:
        DataError: the step cannot unpack the batch.
        ExperimentError: the step returns no pair, or an Experiment of another structure.
    """

    def __init__(self, experiment: Experiment, method: str, batch: Batch) -> None:
        batch = arrays_of(batch)
        self._program, self._arrays, outs = prepare(experiment, method, batch)
        metrics = jax.eval_shape(_packed_metrics, outs, batch)
        self._merges_inside = _keeps_shape(metrics)
        self._empty: Any = jax.tree.map(_zeros, metrics) if self._merges_inside else None
        self._total: Any = self._empty
        self._fresh = True
        self._in_flight: list[Any] = []

    @property
    def experiment(self) -> Experiment:
        """The Experiment after the last step."""
        return self._program.merge(self._arrays)

    def step(self, batch: Batch) -> Outs:
        """One step. Returns its outs, on the device and not waited for."""
        total: Any = self._total if self._merges_inside else None
        after = cast(
            "tuple[list[Any], Any, Outs]",
            _run(self._program, self._arrays, total, np.bool_(self._fresh), arrays_of(batch)),
        )
        self._arrays, merged, outs = after
        if not self._merges_inside and not self._fresh and merged is not None:
            merged = unpack(self._total).merge(unpack(merged))
        self._total, self._fresh = merged, False
        self._bound(_tree.leaves((merged, self._arrays, outs))[:1])
        return unpack(outs)

    def take_metrics(self) -> Metrics | None:
        """The merged metrics of the steps since this was last called, or None."""
        total = None if self._fresh else unpack(self._total)
        self._total, self._fresh = self._empty, True
        return total

    def _bound(self, result: Any) -> None:
        self._in_flight.append(result)
        if len(self._in_flight) > _IN_FLIGHT:
            jax.block_until_ready(self._in_flight.pop(0))


@partial(jax.jit, static_argnums=0)
def _run(
    program: Program, arrays: list[Array], total: Any, fresh: Array, batch: Batch
) -> tuple[list[Array], Any, Outs]:
    """A step: the new arrays, the metrics merged with `total` unless it is `fresh`, the outs."""
    new, outs = program.call(arrays, batch)
    program.check_drift(arrays, new)
    merged = _packed_metrics(outs, batch)
    if total is not None:
        both = _packed_merge(total, merged)
        merged = jax.tree.map(partial(jnp.where, fresh), merged, both)
    return new, merged, pack(outs)


def _packed_metrics(outs: Outs, batch: Batch) -> Any:
    return pack(as_metrics(unpack(outs), batch))


def _packed_merge(total: Any, metrics: Any) -> Any:
    return pack(unpack(total).merge(unpack(metrics)))


def _zeros(like: Any) -> Array:
    return jnp.zeros(like.shape, like.dtype)


def _keeps_shape(metrics: Any) -> bool:
    """Whether merging gives metrics of the same shapes; a collection of outputs grows instead."""
    if metrics is None or any(
        jnp.issubdtype(leaf.dtype, jax.dtypes.extended) for leaf in _tree.leaves(metrics)
    ):
        return False
    try:
        merged = jax.eval_shape(_packed_merge, metrics, metrics)
    except Exception:  # a merge that needs the host runs there, and raises there
        return False
    return _types(merged) == _types(metrics)


def _types(tree: Any) -> Any:
    return _tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in _tree.leaves(tree)]
