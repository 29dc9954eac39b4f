"""The metrics of each example of a batch, and a check that they are those of the batch."""

from collections.abc import Mapping
from functools import reduce
from typing import Any
from weakref import WeakSet

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._batch import arrays_of, num_examples
from solstice._better import better
from solstice._engine import Plan, line_of, prepare, unpack
from solstice._errors import ExperimentError
from solstice._experiment import Experiment
from solstice._metrics import Metrics, as_metrics, to_host
from solstice._types import Batch, Outputs
from solstice.resampling._distribution import is_real

_checked: WeakSet[Plan] = WeakSet()
"""Steps that have passed the check, because it takes as long as some hundred small steps."""

_FEW = 8
"""Examples that are checked."""


def metrics_of_each(experiment: Experiment, batch: Batch) -> Metrics | None:
    """The metrics of each example, with the examples on axis 0; None if there are none."""
    leaves, structure = _tree.flatten(batch)
    split = [np.shape(leaf)[:1] == (num_examples(batch),) for leaf in leaves]

    def metrics_of(example: list[Array]) -> Metrics | None:
        rest = iter(example)
        one = [next(rest)[None] if is_split else x for x, is_split in pairs]
        return metrics_of_batch(experiment, _tree.unflatten(structure, one))

    pairs = list(zip(leaves, split, strict=True))
    return jax.vmap(metrics_of)([jnp.asarray(x) for x, is_split in pairs if is_split])


def metrics_of_batch(experiment: Experiment, batch: Batch) -> Metrics | None:
    """The metrics of a batch, with numbers as arrays."""
    outputs = type(experiment).eval_step(experiment, batch)[1]
    return _tree.map(_as_array, as_metrics(outputs, batch))


def _as_array(leaf: Any) -> Array:
    return jnp.asarray(leaf)


def check_examples(experiment: Experiment, batch: Batch) -> None:
    """Raises an ExperimentError if the metrics of a batch are not those of its examples.

    It evaluates the first examples together and one by one. Error bars of metrics with batch
    statistics or in-batch negatives would be wrong in silence.
    """
    if any(isinstance(x, Array) and not x.is_fully_addressable for x in _tree.leaves(experiment)):
        return  # the results could not be read here
    size = num_examples(batch)

    def first(leaf: Any) -> Any:
        return leaf[:_FEW] if np.shape(leaf)[:1] == (size,) else leaf

    few = _tree.map(first, arrays_of(batch))
    both = _Both(experiment)
    try:
        plan, arrays = prepare(both, "eval_step", few)
    except jax.errors.JAXTypeError as error:
        raise ExperimentError(
            f"{_name(experiment)} cannot be compiled, and error bars need that: {line_of(error)}. "
            f"Write it with jax.numpy, jnp.where and jax.lax.cond"
        ) from error
    if plan in _checked:
        return
    together, apart = unpack(plan.program.traced_call(arrays, few)[1])
    _compare(_name(experiment), to_host(together), to_host(apart), min(size, _FEW))
    _checked.add(plan)


class _Both(Experiment):
    """Evaluates a batch as one, and its examples one by one."""

    wrapped: Experiment

    def train_step(self, batch: Batch) -> tuple["_Both", Outputs]:
        raise NotImplementedError

    def eval_step(self, batch: Batch) -> tuple["_Both", Outputs]:
        each = metrics_of_each(self.wrapped, batch)
        rows = [] if each is None else [_tree.row(each, i) for i in range(num_examples(batch))]
        apart = reduce(lambda total, one: total.merge(one), rows) if rows else None
        return self, (metrics_of_batch(self.wrapped, batch), apart)


def _name(experiment: Experiment) -> str:
    return f"{type(experiment).__name__}.eval_step"


def _compare(name: str, together: Mapping[str, Any], apart: Mapping[str, Any], number: int) -> None:
    for key, value in together.items():
        other = apart.get(key, np.nan)
        if is_real(value) and not _is_near(key, np.asarray(value), np.asarray(other), number):
            raise ExperimentError(
                f"{name} gives {key}={_shown(value)} for {number} examples together, and "
                f"{_shown(other)} for the same one by one. Error bars resample examples, so each "
                f"must count by itself: without statistics of the batch, and without other "
                f"examples as negatives"
            )


def _is_near(name: str, one: Any, other: Any, number: int) -> bool:
    """Whether two values differ by rounding at most, which in half precision may turn a decision.

    A mean loss moves by little then; a share of the examples by one example.
    """
    few = 0.01 if better(name) == "min" else 1.5 / number
    if one.shape != other.shape:
        return False
    return bool(np.allclose(one, other, rtol=0.05, atol=few, equal_nan=True))


def _shown(value: Any) -> str:
    return np.array2string(np.asarray(value), precision=4, threshold=8)
