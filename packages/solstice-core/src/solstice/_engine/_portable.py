"""PortableStep: one step of a Trainer as a function of plain arrays by path, for `jax.export`."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct, lax

from solstice import _tree
from solstice._batch import arrays_of
from solstice._engine._cost import used
from solstice._engine._pack import pack, type_of, types_of, unpack
from solstice._engine._steps import Carry, Steps, run_block
from solstice._engine._totals import merging_of, metrics_like
from solstice._engine._trace import Traced, prepare
from solstice._experiment import Experiment
from solstice._metrics import by_name, computed
from solstice._types import Batch, PyTree

Arrays: TypeAlias = dict[str, Array]
"""Arrays by path, such as `learner/params/Dense_0/kernel`."""

Types: TypeAlias = dict[str, ShapeDtypeStruct]
"""The shape and dtype of each array by path."""


class PortableStep:
    """A step that takes and returns dicts of arrays by path, without classes of its own.

    `step(state, batch)` returns the new state, and the metrics or predictions by path. It runs the
    loop of a Trainer with one turn, because XLA may round a step outside of a loop differently.

    Args:
        experiment: the Experiment, set up.
        method: "train_step", "eval_step" or "predict_step".
        batch: a batch.

    Attributes:
        state: the arrays of the Experiment by path, typed PRNG keys among them.
        fixed: the paths that the step does not change.
        unused: the paths of the state on which metrics or predictions do not depend.
        unused_inputs: those of the batch.
        grows: whether merging metrics changes their shapes.

    Raises:
        DataError, ExperimentError: as `CompiledStepper`.
    """

    def __init__(self, experiment: Experiment, method: str, batch: Batch) -> None:
        batch = arrays_of(batch)
        plan, arrays = prepare(experiment, method, batch)
        self._traced = Traced(plan, _tree.structure(batch), types_of(batch))
        self._steps = Steps(
            plan.program,
            merging_of(self._traced).sums,
            loops=self._traced.sizes().loops,
            keeps_outputs=method == "predict_step",
        )
        self._metrics = metrics_like(self._traced)
        names = plan.program.array_names()
        self.state = dict(zip(names, arrays, strict=True))
        self.fixed = frozenset(names[index] for index in plan.unchanged)
        unused = _unused(self._traced)
        self.unused = frozenset(name for i, name in enumerate(names) if i in unused)
        inputs = enumerate(self.batch_types, len(names))
        self.unused_inputs = frozenset(name for i, name in inputs if i in unused)
        self.grows = self._steps.grows

    @property
    def state_types(self) -> Types:
        """The state as the function takes it: typed PRNG keys are their numbers."""
        return {name: type_of(data_of(array)) for name, array in self.state.items()}

    @property
    def batch_types(self) -> Types:
        """The batch as the function takes it."""
        return {name: type_of(x) for name, x in _tree.leaves_by_slashes(self._traced.batch).items()}

    @property
    def metrics_types(self) -> Types | None:
        """The metrics that `merge` and `compute` take; None if the step has none."""
        if self._metrics is None:
            return None
        return _tree.leaves_by_slashes(self._metrics)

    def __call__(self, state: Mapping[str, Array], batch: Arrays) -> tuple[Arrays, Arrays]:
        """`state, metrics = step(state, batch)`."""
        arrays = [as_key_of(state[name], array) for name, array in self.state.items()]
        leaves = [batch[name][None] for name in self.batch_types]
        stacked = _tree.unflatten(self._traced.structure, leaves)
        # XLA would replace a loop of one turn by its body, if it knew the number of turns.
        count = lax.optimization_barrier(jnp.uint32(1))
        empty = None if self.grows else _tree.map(_zeros, self._metrics)
        carry = Carry(arrays, [empty], np.ones(1, bool))
        _, after, (outputs, grown, _) = run_block(self._steps, carry, stacked, count)
        new = dict(zip(self.state, map(data_of, after.arrays), strict=True))
        result = after.totals[0] if not (self._steps.keeps_outputs or self.grows) else None
        if result is None:
            result = _tree.row(outputs if self._steps.keeps_outputs else grown, 0)
        return {**state, **new}, arrays_by_path(result)

    def merge(self, metrics: Arrays, other: Arrays) -> Arrays:
        """`total = step.merge(total, metrics)`: of metrics that do not grow."""
        merged = self._unflatten(metrics).merge(self._unflatten(other))
        return _tree.leaves_by_slashes(pack(merged))

    def compute(self, metrics: Arrays) -> Arrays:
        """`step.compute(metrics)["loss"]`: the final values by name."""
        values = by_name(computed(self._unflatten(metrics)))
        return {name: jnp.asarray(value) for name, value in values.items()}

    def _unflatten(self, arrays: Arrays) -> Any:
        leaves = [arrays[name] for name in self.metrics_types or ()]
        return unpack(_tree.unflatten(_tree.structure(self._metrics), leaves))


def data_of(array: Array) -> Array:
    """An array without a dtype of JAX's own: typed PRNG keys as their numbers."""
    return jax.random.key_data(array) if _tree.is_key(array) else array


def as_key_of(data: Array, like: Array) -> Array:
    """The inverse of `data_of`."""
    return _tree.as_key(data, like) if _tree.is_key(like) else data


def arrays_by_path(packed: PyTree) -> Arrays:
    """The arrays of packed outputs by path; constants, such as text, are left out."""
    return {name: data_of(leaf) for name, leaf in _tree.leaves_by_slashes(packed).items()}


def _unused(traced: Traced) -> set[int]:
    """The inputs of a step on which its outputs do not depend."""
    plan = traced.plan
    jaxpr = plan.program.trace(plan.types, traced.batch)[0].jaxpr
    outputs = [index >= len(plan.types) for index in range(len(jaxpr.outvars))]
    return {index for index, is_used in enumerate(used(jaxpr, outputs)) if not is_used}


def _zeros(like: ShapeDtypeStruct) -> Array:
    return jnp.zeros(like.shape, like.dtype)
