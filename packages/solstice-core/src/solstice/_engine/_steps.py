"""The compiled block: steps as one pure function of a carry and stacked batches.

The Trainer runs it with a dynamic number of steps, so that a block of any length is the same
program, and the trained state does not depend on how an epoch is cut into blocks. With the number
of the batches it is a scan, which JAX can differentiate.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial, reduce
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct, lax

from solstice import _tree
from solstice._engine._gradient import watch_gradient
from solstice._engine._hash import hashes_of_others, hashes_of_state
from solstice._engine._pack import unpack
from solstice._engine._placement import SINGLE_DEVICE, Placement
from solstice._engine._program import PROGRAMS, Program
from solstice._engine._resident import Rows
from solstice._engine._totals import merged_with, packed_metrics
from solstice._metrics import MergesSteps
from solstice._types import Batch, PyTree


@dataclass(frozen=True)
class Carry:
    """What steps change.

    Attributes:
        arrays: the arrays of the Experiment.
        totals: for each reader, the merged metrics since it last took them.
        is_empty: for each reader, whether there are none. On the host, which branches on it.
    """

    arrays: list[Array]
    totals: list[PyTree]
    is_empty: np.ndarray


@dataclass(frozen=True)
class Steps:
    """The static part of a block: two equal ones share one compilation.

    Attributes:
        program: the step.
        sums: as in `Merging`.
        loops: whether a call is a loop of steps. If not, it runs one, because XLA's backward pass
            of a convolution is slow in a loop.
        keeps_outputs: whether the outputs of each step are returned.
        donates: whether a call destroys the arrays of its carry, to reuse their memory.
        fixed: the indices of arrays that the step does not change. A call does not return them,
            because a result that is not donated is a copy.
        placement: the devices of the state.
        split: the sharding of each array of the state, if it lies on several devices.
        hashes_every: the number of steps after which the state is hashed; 0 for never; None to hash
            neither the state nor the batch and the outputs of each step.
    """

    program: Program
    sums: tuple[bool, ...] | None
    loops: bool = True
    keeps_outputs: bool = False
    donates: bool = False
    fixed: tuple[int, ...] = ()
    placement: Placement = SINGLE_DEVICE
    split: tuple[Any, ...] = ()
    hashes_every: int | None = None

    @property
    def grows(self) -> bool:
        """Whether merging changes the shapes of the metrics, so they are merged after the call."""
        return self.sums is None

    @property
    def keeps_results(self) -> bool:
        """Whether a call returns something of each step."""
        return self.keeps_outputs or self.grows or self.hashes_every is not None


Results: TypeAlias = tuple[PyTree, PyTree, PyTree]
"""The outputs, the growing metrics and the hashes of each step, stacked; None if not kept."""


def run_block(
    steps: Steps,
    carry: Carry,
    batches: Batch,
    count: Array | None = None,
    done: Array | None = None,
) -> tuple[Array, Carry, Results]:
    """Runs the first `count` of the stacked batches; None runs all, and can be differentiated.

    `done` is the number of steps before the block, if `hashes_every` depends on it.

    Returns:
        A token, an array that is ready when the batches have been read; the new carry; the results
        of the steps.
    """
    take = partial(_one_step, steps, count is None)
    # Of a scan only the states are stored for the backward pass, not what is inside the steps.
    one_step = cast("_Take", jax.checkpoint(take)) if count is None else take

    def advance(state: _State, batch: Batch) -> tuple[_State, Results]:
        index, arrays, totals = state
        # At both ends, because the loop's own arrays would get another sharding than its results.
        arrays = steps.placement.constrain(arrays, steps.split)
        at = None if done is None else done + index
        new, one, kept = one_step(arrays, batch, at)
        steps.program.check_drift(arrays, new)  # again, for batches of another kind than planned
        new = steps.placement.constrain(new, steps.split)
        if steps.sums is not None:
            begins = carry.is_empty & (index == 0)
            totals = [
                merged_with(steps.sums, total, one, begins[reader])
                for reader, total in enumerate(totals)
            ]
            # Else the first call, whose totals are empty, would be another program than the next.
            totals = steps.placement.constrain_whole(totals)
        return (index + 1, new, totals), kept

    def step(loop: tuple[_State, Results]) -> tuple[_State, Results]:
        state, kept = loop
        index = state[0]
        batch = _batch_at(batches, index)
        if isinstance(batches, Rows):  # others are split already
            batch = steps.placement.split(batch)
        state, now = advance(state, batch)
        return state, _tree.map(partial(_write_row, index), kept, now)

    first: _State = (jnp.zeros((), jnp.uint32), carry.arrays, carry.totals)
    if count is None:
        state, kept = lax.scan(advance, first, batches)
    else:
        kept = (None, None, None)
        if steps.keeps_results:  # a loop writes into buffers of fixed shape
            batch = _tree.eval_shape(_batch_at, batches, 0)
            shapes = _tree.eval_shape(take, carry.arrays, batch, done)[-1]
            kept = _tree.map(partial(_rows, _most(batches)), shapes)
        state, kept = (
            lax.while_loop(lambda loop: loop[0][0] < count, step, (first, kept))
            if steps.loops
            else step((first, kept))
        )
    # The step counter is the token, because no later call donates it, unlike the arrays.
    token, arrays, totals = state
    arrays = steps.placement.constrain(arrays, steps.split)
    return token, replace(carry, arrays=arrays, totals=totals), kept


def _one_step(
    steps: Steps, is_scan: bool, arrays: list[Array], batch: Batch, at: Array | None
) -> tuple[list[Array], PyTree, Results]:
    """The arrays after a step, its metrics, and its results."""
    by_slices, hashed = steps.placement.num_devices == 1, None
    if is_scan:
        arrays = [watch_gradient(array) for array in arrays]
    if steps.hashes_every is not None:
        arrays, hashed = hashes_of_state(arrays, at, steps.hashes_every, by_slices=by_slices)
    new, outputs = steps.program.traced_call(arrays, batch)
    one = packed_metrics(steps.program, outputs, batch)
    if hashed is not None:
        hashed = hashed, hashes_of_others((batch, outputs), by_slices=by_slices)
    kept = outputs if steps.keeps_outputs else None, one if steps.grows else None, hashed
    return new, *steps.placement.constrain_whole((one, kept))


_Take: TypeAlias = Callable[[list[Array], Batch, Any], tuple[list[Array], PyTree, Results]]
_State: TypeAlias = tuple[Array, list[Array], list[PyTree]]

Call: TypeAlias = Callable[[Carry, Batch, int, int], tuple[Array, Carry, Results]]
"""`run_block`, compiled."""


_Run: TypeAlias = Callable[..., tuple[Array, list[Array], list[PyTree], Results]]


@lru_cache(maxsize=PROGRAMS)
def compiled(steps: Steps) -> Call:
    """The compiled program of a block, cached here, because JAX frees it with its function."""

    def run(
        arrays: list[Array],
        totals: list[PyTree],
        is_empty: Any,
        batches: Batch,
        count: Array,
        done: Array | None,
    ) -> tuple[Array, list[Array], list[PyTree], Results]:
        token, new, kept = run_block(steps, Carry(arrays, totals, is_empty), batches, count, done)
        return token, [x for i, x in enumerate(new.arrays) if i not in fixed], new.totals, kept

    fixed = {*steps.fixed}
    # Arrays are an argument of their own, because they are donated. Totals may be in a callback.
    jitted = cast("_Run", jax.jit(run, donate_argnums=0 if steps.donates else ()))

    every = steps.hashes_every or 1

    def call(carry: Carry, batches: Batch, count: int, done: int) -> tuple[Array, Carry, Results]:
        # Totals that grow have a new shape in each call, and each would compile a program.
        given = [] if steps.grows else carry.totals
        # The count is an argument, so blocks of any length are the same program.
        # Put there first, because a transfer by the call would not be ahead of it.
        numbers = np.uint32(count), np.uint32(done % every) if every > 1 else None
        others = steps.placement.put_inputs((carry.is_empty, batches, *numbers))
        token, arrays, totals, kept = jitted(carry.arrays, given, *others)
        for index in steps.fixed:  # in ascending order, so each comes to its place
            arrays.insert(index, carry.arrays[index])
        after = carry.totals if steps.grows else totals
        return token, Carry(arrays, after, np.zeros_like(carry.is_empty)), kept

    return call


def calls(steps: Steps, batches: Batch, count: int) -> list[tuple[Batch, int]]:
    """The batches and the number of steps of each call for `count` steps."""
    if steps.loops:
        return [(batches, count)]
    if isinstance(batches, Rows):
        return [(batches.after(index), 1) for index in range(count)]
    return [(_one_row(batches, index), 1) for index in range(count)]


def merge_grown(steps: Steps, before: Carry, after: Carry, grown: PyTree, count: int) -> Carry:
    """Merges metrics that grow after a call, because a compiled loop cannot carry them."""
    if not steps.grows:
        return after
    stacked = unpack(grown)
    if isinstance(stacked, MergesSteps):
        new = [stacked.of_steps(count)]
    else:
        new = [unpack(_row(grown, index)) for index in range(count)]
    starts = zip(before.is_empty, before.totals, strict=True)
    totals = [
        reduce(lambda total, one: total.merge(one), new if is_empty else [total, *new])
        for is_empty, total in starts
    ]
    return replace(after, totals=totals)


def _batch_at(batches: Batch, index: Array | int) -> Batch:
    """Batch `index`, within a compiled call."""
    stacked = not isinstance(batches, Rows)
    batch = _tree.map(partial(_read_row, index), batches) if stacked else batches.batch(index)
    # A barrier, so that XLA compiles the step apart from the reading of its batch, and rounds alike
    # wherever that lies. With the index, because XLA would move operations on the only batch of a
    # buffer or of an epoch out of the loop. It costs nothing that could be measured.
    return lax.optimization_barrier((batch, index))[0]


def _most(batches: Batch) -> int:
    """The most batches in a call."""
    return batches.most if isinstance(batches, Rows) else len(_tree.leaves(batches)[0])


def _read_row(index: Array | int, buffer: Array) -> Array:
    return cast("Array", lax.dynamic_index_in_dim(buffer, index, keepdims=False))


def _one_row(batches: Batch, index: int) -> Batch:
    leaves, structure = _tree.flatten(batches)
    if all(isinstance(leaf, np.ndarray) for leaf in leaves):
        return _tree.row(batches, slice(index, index + 1))  # views
    return _tree.unflatten(structure, _at(index, leaves, 1))


def _row(stacked: PyTree, index: int) -> PyTree:
    leaves, structure = _tree.flatten(stacked)
    return _tree.unflatten(structure, _at(index, leaves, None))


def _at(index: int, leaves: list[Array], length: int | None) -> list[Array]:
    """Rows of arrays on a device. There `array[index]` would transfer the index implicitly."""
    return cast("Any", _copied)(leaves, jax.device_put(np.uint32(index)), length)


@partial(jax.jit, static_argnums=2)
def _copied(leaves: list[Array], index: Array, length: int | None) -> list[Array]:
    # Of leaves, because JAX would keep the structures with the program.
    if length is None:
        return [_read_row(index, leaf) for leaf in leaves]
    return [lax.dynamic_slice_in_dim(leaf, index, length) for leaf in leaves]


def _write_row(index: Array, buffer: Array, value: Array) -> Array:
    return cast("Array", lax.dynamic_update_index_in_dim(buffer, value, index, 0))


def _rows(count: int, like: ShapeDtypeStruct) -> Array:
    return jnp.zeros((count, *like.shape), like.dtype)
