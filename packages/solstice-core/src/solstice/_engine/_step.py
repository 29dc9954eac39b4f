"""Stepper: one compiled call runs a block of steps and merges their metrics.

The call has a dynamic trip count, so a block of any length is the same program, and the trained
state does not depend on how an epoch is cut into blocks. Nothing is read back to the host.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from solstice import _tree
from solstice._batch import arrays_of
from solstice._engine._compiles import Kind, kinds_of
from solstice._engine._feed import Block
from solstice._engine._interrupts import interrupts_held
from solstice._engine._merging import merged_with, merging_of, metrics_like, packed_metrics
from solstice._engine._program import PROGRAMS, Plan, Program, pack, prepare, type_of, unpack
from solstice._engine._traced import Traced
from solstice._experiment import Experiment
from solstice._metrics import Metrics
from solstice._types import Batch, Outputs

STEPS_PER_CALL = 32
"""Steps in a block: enough to make the cost of a call negligible, and few to wait for."""

SMALL_STEPS_PER_CALL = 512
"""Steps in a block of few bytes: a call costs more for an Experiment of many arrays."""

SMALL_BYTES_PER_CALL = 2**20
"""Bytes of the batches and outputs in such a block."""

BYTES_PER_CALL = 2**23
"""Bytes of batches and outputs in a block: filling and reading are slower beyond the caches."""

FLOPS_PER_CALL = {"cpu": 2**33}
"""Operations in a block: a fraction of a second, because Ctrl-C and callbacks wait for its end."""

_FLOPS_PER_CALL_ELSEWHERE = 2**43

CALLS_AT_ONCE = 8
"""Single-step calls that are made one after the other, because Python is slower after a long step
has filled the caches."""

_SLOWEST = 16
"""The slowdown of an operation that waits for memory."""


class Stepper:
    """Runs blocks of steps of one kind, and holds the newest state.

    Args:
        experiment: the initial Experiment. It is not changed, and stays valid.
        method: "train_step", "eval_step" or "predict_step".
        batch: a batch of the usual kind; the step is traced with it before anything runs.
        steps_per_call: the most steps in a call; chosen by rule if None.
        keeps_outputs: whether `run` returns the outputs of each step.
        can_rewind: whether `rewind` may be called. If not, train steps donate their input arrays.
        readers: the number of accumulators of metrics. Each merges step by step, so its bits do not
            depend on when another is read.

    Attributes:
        steps_per_call: the most steps in a call.
        steps_per_block: the most steps in a block, run by one call or by several of one step each.
        first_steps: the most steps in the first block, whose time sets the pace: few, in case the
            steps are slow, and 1 if their cost is unknown.
        reason: the reason for `steps_per_call`.
        kind: the class of the Experiment.
        name: the name of the step, such as "Classifier.train_step".

    Raises:
        DataError: the step cannot unpack the batch.
        ExperimentError: the step does not return a pair, or returns an Experiment of another
            structure.
    """

    def __init__(
        self,
        experiment: Experiment,
        method: str,
        batch: Batch,
        *,
        steps_per_call: int | None = None,
        keeps_outputs: bool = False,
        can_rewind: bool = False,
        readers: int = 1,
    ) -> None:
        batch = arrays_of(batch)
        self._plan, arrays = prepare(experiment, method, batch)
        arranged = _arrangement(self._plan, steps_per_call, batch)
        self.steps_per_call, self.steps_per_block, self.reason = arranged
        self.first_steps = _first_steps(self._plan, self.steps_per_block)
        self._batch = _tree.structure(batch), _shapes(batch)
        self._merging = merging_of(self._plan, *self._batch)
        self._config = _Config(
            self._plan.program, self.steps_per_call > 1, keeps_outputs, self._merging.sums
        )
        self.kind = type(experiment)
        self.name = f"{self.kind.__name__}.{method}"
        # Evaluation must not destroy the training state, and `rewind` needs the old one.
        self._donates = method == "train_step" and not can_rewind
        self._compiled = _compiled(self._config, self._donates)
        self._arrays: list[Any] = arrays
        self._shared = True  # because the caller owns the initial arrays
        self._totals: list[Any] = [self._merging.empty] * readers
        self._is_empty = np.ones(readers, bool)
        self._before: Any = None

    @property
    def outputs(self) -> Outputs:
        """The shapes of the step's outputs."""
        return unpack(self._plan.outputs)

    @property
    def state_bytes(self) -> int:
        """The size of the state's arrays in bytes."""
        return sum(x.nbytes for x in self._arrays)

    @property
    def traced(self) -> "Traced":
        """The traced step, without the Experiment's arrays."""
        return Traced(self._plan, *self._batch)

    @property
    def works_in_place(self) -> bool:
        """Whether a call reuses the memory of its input arrays."""
        return self._donates

    @property
    def experiment(self) -> Experiment:
        """The Experiment after the last step. It stays valid."""
        self._shared = True  # so the next call copies the arrays before it donates them
        return self._plan.program.merge(self._arrays)

    @property
    def is_lost(self) -> bool:
        """Whether a call has failed and the arrays cannot be read."""
        try:  # calls are asynchronous, so a failure may show only here
            jax.block_until_ready(self._arrays)
        except Exception:  # any error of the device
            return True
        return False

    def signature(self, block: Block) -> tuple[str, dict[str, Kind]]:
        """A name, and by path the inputs on which the compiled program of a block depends."""
        experiment = self._plan.program.merge(self._plan.types)
        batch = block.arrays(0)
        callbacks = {
            "steps in a call": self.steps_per_call > 1,
            "callbacks that read metrics": len(self._totals),
            "callbacks that read outputs": self._config.keeps_outputs,
            "callbacks that may stop the run": not self._donates,
        }
        name = f"{self.kind.__module__}.{self.kind.__qualname__}.{self.name}"
        return name, {
            **kinds_of(experiment),
            **kinds_of(batch, "batch"),
            **{path: Kind(str(value)) for path, value in callbacks.items()},
        }

    def run(self, block: Block) -> "BlockOutputs":
        """Runs a block of steps; returns their outputs, on the device."""
        # The old state is kept only for `rewind`, because it needs a second copy of the memory.
        self._before = None if self._donates else (self._arrays, self._totals, self._is_empty)
        return self._run(block, len(block))

    def rewind(self, block: Block, count: int) -> None:
        """Restores the state after the `count`-th step of the last block.

        It runs these steps again from the state before the block. The bits are the same, because
        the shorter call is the same program.
        """
        self._arrays, self._totals, self._is_empty = self._before
        self._run(block, count)

    def take_metrics(self, reader: int = 0) -> Metrics | None:
        """The merged metrics since this reader last took them; None if there are none."""
        if self._is_empty[reader]:
            return None
        readers = range(len(self._totals))
        total, empty = self._totals[reader], self._merging.empty
        # New lists, because `rewind` may restore the old ones.
        self._totals = [empty if r == reader else self._totals[r] for r in readers]
        self._is_empty = np.array([r == reader or self._is_empty[r] for r in readers])
        return unpack(total)

    def totals(self) -> list[Metrics | None]:
        """The merged metrics of each reader since it last took them, without taking them."""
        return [
            None if is_empty else unpack(total)
            for is_empty, total in zip(self._is_empty, self._totals, strict=True)
        ]

    def restore(self, experiment: Experiment, totals: Sequence[Mapping[str, Any] | None]) -> None:
        """Restores a saved Experiment, and the metrics of each reader from arrays by path.

        Raises:
            KeyError: the metrics of the step have other paths, shapes or dtypes.
        """
        self._arrays = self._plan.program.split(experiment)
        self._shared = True
        for reader, numbers in enumerate(totals):
            if numbers is not None:
                like = unpack(metrics_like(self._plan, *self._batch))
                total = _filled(like, numbers, self._config.grows)
                self._totals[reader] = total if self._config.grows else pack(total)
        self._is_empty = np.array([numbers is None for numbers in totals])

    def _run(self, block: Block, count: int) -> "BlockOutputs":
        if self._donates and self._shared:  # because a donated array is destroyed for all owners
            _tree.copy_in_place(self._arrays)
            self._shared = False
        ends: list[Array] = []
        kept: list[Any] = []
        began = time.monotonic()
        with interrupts_held():  # because the old arrays are gone before the new ones are assigned
            for stacked, steps in self._calls(block.stacked, count):
                done, outputs = self._call(stacked, steps)
                ends.append(done)
                kept.append(outputs)
                block.slot.mark_in_use(ends, len(ends) * steps, began)
        return BlockOutputs(kept, count)

    def _calls(self, stacked: Batch, count: int) -> list[tuple[Batch, int]]:
        """The batches and the number of steps of each call."""
        if self._config.loops:
            return [(stacked, count)]
        return [(_tree.map(partial(_one_row, index), stacked), 1) for index in range(count)]

    def _call(self, stacked: Batch, count: int) -> tuple[Array, Any]:
        """Calls the program once; returns an array that is ready at its end, and the outputs."""
        totals = None if self._config.grows else self._totals
        # The count is an argument, so blocks of any length are the same program.
        done, self._arrays, totals, (outputs, grown) = self._compiled(
            self._arrays, totals, self._is_empty, stacked, np.uint32(count)
        )
        self._totals = self._merge_grown(grown, count) if self._config.grows else totals
        self._is_empty = np.zeros_like(self._is_empty)
        return done, outputs

    def _merge_grown(self, grown: Any, count: int) -> list[Any]:
        """Merges metrics that grow after the call, because a compiled loop cannot carry them."""
        steps = [unpack(_tree.row(grown, index)) for index in range(count)]
        starts = [[] if new else [t] for new, t in zip(self._is_empty, self._totals, strict=True)]
        return [reduce(lambda total, one: total.merge(one), [*start, *steps]) for start in starts]


class BlockOutputs:
    """The outputs of the steps of one block, copied to the host at the first access.

    Args:
        outputs: the stacked outputs of each call.
        count: the number of steps.
    """

    def __init__(self, outputs: list[Any], count: int) -> None:
        self._outputs = outputs
        self._count = count
        self._host: Any = None

    def first(self, count: int) -> "BlockOutputs":
        """The outputs of the first `count` steps."""
        return BlockOutputs(self._outputs, count)

    def __iter__(self) -> Iterator[Outputs]:
        return (self[index] for index in range(self._count))

    def __getitem__(self, index: int) -> Outputs:
        if self._host is None:  # one transfer for all steps
            self._host = jax.device_get(self._outputs)
        call, row = (0, index) if len(self._host) == 1 else (index, 0)
        return unpack(_tree.row(self._host[call], row))


@dataclass(frozen=True)
class _Config:
    """The static argument of a compiled call; `sums` is as in `Merging`."""

    program: Program
    loops: bool
    keeps_outputs: bool
    sums: tuple[bool, ...] | None

    @property
    def grows(self) -> bool:
        """Whether merging changes the shapes of the metrics, so they are merged after the call."""
        return self.sums is None


def _run_block(
    config: _Config,
    arrays: list[Array],
    totals: Any,
    is_empty: Array,
    stacked: Batch,
    count: Array,
) -> tuple[Array, list[Array], Any, Any]:
    """Runs the first `count` steps of a block.

    Returns an array that is ready when the block has been read, the new arrays, the merged metrics
    of each reader, and the outputs and growing metrics of each step.
    """

    def take(arrays: list[Array], batch: Batch) -> Any:
        new, outputs = config.program.traced_call(arrays, batch)
        one = packed_metrics(config.program, outputs, batch)
        return new, one, (outputs if config.keeps_outputs else None, one if config.grows else None)

    def step(carry: Any) -> Any:
        index, arrays, totals, kept = carry
        batch = _tree.map(partial(_read_row, index), stacked)
        new, one, now = take(arrays, batch)
        config.program.check_drift(arrays, new)  # again, for batches of another kind than planned
        if config.sums is not None:
            begins = is_empty & (index == 0)
            totals = [merged_with(config.sums, t, one, begins[r]) for r, t in enumerate(totals)]
        kept = _tree.map(partial(_write_row, index), kept, now)
        return index + 1, new, totals, kept

    kept: Any = (None, None)
    if config.keeps_outputs or config.grows:  # a compiled loop writes into buffers of fixed shape
        shapes = _tree.eval_shape(take, arrays, _tree.row(stacked, 0))[-1]
        kept = _tree.map(partial(_rows, len(_tree.leaves(stacked)[0])), shapes)
    start = (jnp.zeros((), jnp.uint32), arrays, totals, kept)
    # One step per call has no loop, because XLA's backward pass of a convolution is slow in one.
    if config.loops:
        return lax.while_loop(lambda carry: carry[0] < count, step, start)
    return step(start)


_Runs: TypeAlias = Callable[..., tuple[Any, list[Any], Any, tuple[Any, Any]]]


@lru_cache(maxsize=PROGRAMS)
def _compiled(config: _Config, donates: bool) -> _Runs:
    """The compiled program of a block, cached here, because JAX frees it with its function."""
    donated = 0 if donates else ()
    return cast("_Runs", jax.jit(partial(_run_block, config), donate_argnums=donated))


def _arrangement(plan: Plan, steps_per_call: int | None, batch: Batch) -> tuple[int, int, str]:
    """The steps per call, the steps per block, and the reason.

    The choice follows a rule and never a clock, because one step per call is another program, which
    may round differently.
    """
    if steps_per_call is not None:
        return steps_per_call, steps_per_call, "set by steps_per_call"
    most, reason = _steps_by_size(plan, batch)
    if plan.cost.has_convolution and jax.default_backend() == "cpu":
        reason = "the step has a convolution, whose backward pass is slow in a loop on the CPU"
        return 1, min(most, CALLS_AT_ONCE), reason
    return most, most, reason


def _steps_by_size(plan: Plan, batch: Batch) -> tuple[int, str]:
    """The largest number of steps that is short and fits into the caches, and the reason."""
    size = max(_bytes_of(batch) + _bytes_of(plan.outputs), 1)
    few = min(SMALL_BYTES_PER_CALL // size, SMALL_STEPS_PER_CALL)
    flops, most = plan.cost.flops, _flops_per_call()
    choices = [
        (max(few, STEPS_PER_CALL), "small steps cost less when one call runs many"),
        (
            BYTES_PER_CALL // size,
            f"a batch and its outputs have {size:,} bytes, and a call has at most "
            f"{BYTES_PER_CALL:,}",
        ),
        (
            most // max(flops, 1),
            f"a step has about {flops:,} operations, and a call has at most {most:,}",
        ),
    ]
    count, reason = min(choices, key=lambda choice: choice[0])
    return max(count, 1), reason


def _first_steps(plan: Plan, most: int) -> int:
    """The number of steps that is short even if every operation waits for memory."""
    if not plan.cost.is_known:
        return 1
    few = _flops_per_call() // max(_SLOWEST * plan.cost.flops, 1)
    return max(min(few, most), 1)


def _flops_per_call() -> int:
    return FLOPS_PER_CALL.get(jax.default_backend(), _FLOPS_PER_CALL_ELSEWHERE)


def _bytes_of(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in _tree.leaves(tree))


def _read_row(index: Array, buffer: Array) -> Array:
    return cast("Array", lax.dynamic_index_in_dim(buffer, index, keepdims=False))


def _one_row(index: int, buffer: Any) -> Any:
    return buffer[index : index + 1]


def _write_row(index: Array, buffer: Array, value: Array) -> Array:
    return cast("Array", lax.dynamic_update_index_in_dim(buffer, value, index, 0))


def _rows(count: int, like: Any) -> Array:
    return jnp.zeros((count, *like.shape), like.dtype)


def _filled(like: Any, numbers: Mapping[str, Any], grows: bool) -> Any:
    """A tree of the structure of `like` with these arrays, by path."""
    paths = [path for path, _ in _tree.leaves_by_path(like)]
    missing = {*paths} ^ {*numbers}
    if missing:
        raise KeyError(min(missing))
    arrays = [jnp.asarray(numbers[path]) for path in paths]
    for path, array, wanted in zip(paths, arrays, _tree.leaves(like), strict=True):
        start = 1 if grows else 0  # because axis 0, the examples, may have any length
        if (array.dtype, array.shape[start:]) != (wanted.dtype, wanted.shape[start:]):
            raise KeyError(f"{path} of {array.dtype}{list(array.shape)}")
    return _tree.unflatten(_tree.structure(like), arrays)


def _shapes(batch: Batch) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(type_of(leaf) for leaf in _tree.leaves(batch))
