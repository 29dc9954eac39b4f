"""run_steps: the compiled block of the Trainer as a pure function of an Experiment and batches."""

from collections.abc import Iterator
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax import Array, ShapeDtypeStruct, lax

from solstice import _tree
from solstice._arguments import is_deleted
from solstice._batch import arrays_of, describe_batch, is_traced
from solstice._engine._eager import line_of
from solstice._engine._pack import as_jax, unpack
from solstice._engine._placement import SINGLE_DEVICE, placement_of
from solstice._engine._steps import Carry, Steps, calls, compiled, merge_grown, run_block
from solstice._engine._totals import merging_of
from solstice._engine._trace import Traced, prepare
from solstice._errors import DataError, ExperimentError
from solstice._experiment import Experiment, check_experiment
from solstice._metrics import Metrics
from solstice._types import Batch

_E = TypeVar("_E", bound=Experiment)

_STACK = "`jax.tree.map(lambda *x: jnp.stack(x), *batches)`"


def run_steps(experiment: _E, batches: Batch) -> tuple[_E, Metrics | None]:
    """`exp, metrics = solstice.run_steps(exp, batches)`: one `train_step` per stacked batch.

    ```python
    batches = jax.tree.map(lambda *x: jnp.stack(x), *list_of_batches)
    exp, metrics = solstice.run_steps(exp, batches)
    metrics.compute()["loss"]
    ```

    It is a pure function, for `eqx.filter_jit`, `eqx.filter_vmap`, `eqx.filter_grad` and code of
    your own around them. It runs the compiled call of a Trainer, so `Trainer.fit` on the same
    batches gives the same bits. Within a transformation it is a `lax.scan` over the same steps,
    which JAX can differentiate and XLA may round differently, mostly in convolutions. Each step is
    a `jax.checkpoint`, so that a gradient stores only the states between steps. `check_batch` and
    callbacks are not called.

    `jax.jit` refuses an Experiment with functions or texts among its leaves: write
    `eqx.filter_jit(solstice.run_steps)`.

    Args:
        experiment: the Experiment before the first step. It is not changed, and stays valid.
        batches: a batch whose arrays have one more axis in front: axis 0 is the number of steps.
            Steps see None in place of text.

    Returns:
        The Experiment after the last step, and its metrics: merged over the steps as by a Trainer,
        or None if the steps have none.

    Raises:
        DataError: the batches are not stacked, or the step cannot unpack one.
        ExperimentError: the step breaks the contract of its return value, or cannot be compiled.
        EquinoxRuntimeError: a gradient through the steps is NaN. The message names `eps_root`.
    """
    check_experiment(experiment)
    stacked = _stacked(batches)
    try:
        traced, arrays = _trace(experiment.setup(_first(stacked)), stacked)
    except DataError as error:
        error.add_note(f"solstice.run_steps needs stacked batches: {_STACK}")
        raise
    except jax.errors.JAXTypeError as error:
        raise ExperimentError(
            f"{type(experiment).__name__}.train_step cannot be compiled: {line_of(error)}. Write "
            f"it with jax.numpy, jnp.where and jax.lax.cond; `Trainer.fit` runs it uncompiled"
        ) from error
    merging = merging_of(traced)
    is_within = traced.plan.captures or is_traced((experiment, batches))
    steps = Steps(
        traced.plan.program,
        merging.sums,
        loops=traced.sizes().loops,
        placement=SINGLE_DEVICE if is_within else placement_of(experiment),
    )
    carry = Carry(arrays, [merging.empty], np.ones(1, bool))
    count = len(_tree.leaves(stacked)[0])
    run = _scan if is_within else _call
    carry = run(steps, carry, stacked, count)
    return cast("_E", steps.program.merge(carry.arrays)), unpack(carry.totals[0])


def _trace(experiment: Experiment, stacked: Batch) -> tuple[Traced, list[Array]]:
    """The step for one of the batches, and the arrays of the Experiment."""
    types = tuple(ShapeDtypeStruct(x.shape[1:], x.dtype) for x in _tree.leaves(stacked))
    structure = _tree.structure(stacked)
    plan, arrays = prepare(experiment, "train_step", _tree.unflatten(structure, types))
    return Traced(plan, structure, types), arrays


def _call(steps: Steps, carry: Carry, stacked: Batch, count: int) -> Carry:
    """Runs the program of the Trainer."""
    for rows, number in calls(steps, stacked, count):
        before = carry
        _, carry, (_, grown, _) = compiled(steps)(carry, rows, number, 0)
        carry = merge_grown(steps, before, carry, grown, number)
    return carry


def _scan(steps: Steps, carry: Carry, stacked: Batch, count: int) -> Carry:
    """Runs the steps within a transformation of JAX."""
    _, after, (_, grown, _) = run_block(steps, carry, stacked)
    return merge_grown(steps, carry, after, grown, count)


def _stacked(batches: Batch) -> Batch:
    """The arrays of stacked batches, on the device.

    Raises:
        DataError: their leaves do not have the same number of batches in front.
    """
    # A list is a tree too, and would be one batch of many leaves.
    if isinstance(batches, list | Iterator):
        raise DataError(
            f"batches must be stacked, one array for each leaf; they are a "
            f"{type(cast('object', batches)).__name__} of batches. Write {_STACK}, and "
            f"`tuple(...)` around it if a batch is a list itself"
        )
    arrays = arrays_of(_tree.map(as_array, batches))
    lengths = {np.shape(leaf)[:1] for leaf in _tree.leaves(arrays)}
    if len(lengths) != 1 or () in lengths:
        raise DataError(
            f"the arrays of batches must have an axis 0 of one length, the number of batches; they "
            f"are {describe_batch(batches)}. To stack a list of batches, write {_STACK}"
        )
    if (0,) in lengths:
        raise DataError(f"batches must have one batch or more; they are {describe_batch(batches)}")
    return _tree.map(as_jax, arrays)


def as_array(leaf: Any) -> Any:
    """Numbers and tensors as arrays of NumPy; others, such as text, unchanged: no step sees them.

    A data set is not an array, though NumPy could make one of its batches.
    """
    if is_deleted(leaf):
        raise DataError(f"an array of batches, of shape {list(leaf.shape)}, has been deleted")
    is_data = hasattr(leaf, "__array__") or isinstance(leaf, int | float | complex)
    return np.asarray(leaf) if is_data and not isinstance(leaf, Array) else leaf


def _first(stacked: Batch) -> Batch:
    """The first batch, as `setup` sees it: NumPy arrays, if they have values."""
    if is_traced(stacked):
        return _tree.map(_first_row, stacked)
    with jax.ensure_compile_time_eval():  # because the steps may be within a transformation
        return jax.device_get(_tree.map(_first_row, stacked))


def _first_row(array: Array) -> Array:
    # Not `array[0]`, which transfers the index to the device implicitly.
    return lax.index_in_dim(array, 0, keepdims=False)
