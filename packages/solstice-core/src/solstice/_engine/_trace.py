"""Tracing: a step becomes a plan before anything runs, and a digest that other processes share."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import FrozenInstanceError, dataclass, replace
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
from jax import Array, ShapeDtypeStruct

from solstice import _tree
from solstice._batch import describe_batch, is_traced
from solstice._engine._block_size import Arrangement, arrangement
from solstice._engine._cost import Cost, cost_of, unchanged
from solstice._engine._digest import StepDigest, digest_of_jaxpr
from solstice._engine._pack import as_jax, as_type, is_weak, type_of, types_of
from solstice._engine._program import ARRAY, PROGRAMS, ConstantChanged, Program, program_of
from solstice._engine._sharding import ONE, Spread
from solstice._errors import DataError, ExperimentError
from solstice._experiment import Experiment
from solstice._types import Batch, PyTree, Structure

Types = tuple[ShapeDtypeStruct, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """The result of tracing a step. It is cached, and equal only to itself.

    Attributes:
        program: the step, a static argument of compiled calls.
        types: the shape and dtype of each array of the state.
        outputs: the shapes of the step's outputs, packed.
        cost: the cost of a step.
        unchanged: the indices of the state's arrays that the step returns unchanged.
        captures: whether the step uses a value of a JAX transformation around it, as an optimizer
            does that was made there from a traced learning rate.
    """

    program: Program
    types: Types
    outputs: PyTree
    cost: Cost
    unchanged: tuple[int, ...]
    captures: bool


@dataclass(frozen=True)
class Traced:
    """A step traced with batches of one kind, for comparison with another process.

    Attributes:
        plan: the traced step.
        structure: the tree structure of a batch.
        shapes: the shape and dtype of each array of a batch.
    """

    plan: Plan
    structure: Structure
    shapes: Types

    def sizes(self, steps_per_call: int | None = None, spread: Spread = ONE) -> Arrangement:
        """The most steps in a call and in a block; the user's choice if given."""
        step_bytes = _nbytes(self.shapes) // spread.parts + self._output_bytes
        return arrangement(*self._work(spread), step_bytes, steps_per_call)

    @property
    def _output_bytes(self) -> int:
        return _nbytes(_tree.leaves(self.plan.outputs))

    def _work(self, spread: Spread) -> tuple[Cost, int]:
        """The cost of a step on one device, and the bytes of the arrays there that it changes."""
        plan = self.plan
        cost = replace(plan.cost, flops=plan.cost.flops // spread.parts)
        changed = [i for i in range(len(plan.types)) if i not in {*plan.unchanged}]
        return cost, spread.nbytes(plan.types, changed)

    @property
    def batch(self) -> Batch:
        """The shapes of a batch, as a batch."""
        return _tree.unflatten(self.structure, self.shapes)

    def has_outputs_of(self, other: "Traced") -> bool:
        """Whether the outputs of two steps have the same structure and types."""
        one, two = self.plan.outputs, other.plan.outputs
        return _tree.structure(one) == _tree.structure(two) and types_of(one) == types_of(two)

    def is_of(self, batch: Batch) -> bool:
        """Whether the step was traced with batches like this one."""
        return _tree.structure(batch) == self.structure and types_of(batch) == self.shapes

    def sizes_on_device(
        self,
        epoch_steps: int,
        steps_per_call: int | None = None,
        spread: Spread = ONE,
        *,
        keeps_outputs: bool,
    ) -> Arrangement:
        """The same for data on the device, of `epoch_steps` batches."""
        step_bytes = self._output_bytes if keeps_outputs else 0
        return arrangement(*self._work(spread), step_bytes, steps_per_call, epoch_steps)

    def digest(self) -> StepDigest:
        """The digest of the step, the same in every process."""
        return _digest_of(self)

    def with_batches(self, shapes: Types) -> "Traced":
        """The same step for batches of other shapes; unchanged if the number of arrays differs."""
        return self if len(shapes) != len(self.shapes) else replace(self, shapes=shapes)


@lru_cache(maxsize=PROGRAMS)
def _digest_of(traced: Traced) -> StepDigest:
    return digest_of_jaxpr(traced.plan.program.trace(traced.plan.types, traced.batch)[0])


def prepare(experiment: Experiment, method: str, batch: Batch) -> tuple[Plan, list[Array]]:
    """The plan of a step, and the initial arrays.

    Python numbers among the leaves become arrays, so a new value compiles nothing. If that fails,
    because a number sets a shape or a branch, those that the step does not change stay constants.
    Plans are cached, so the same step is not traced twice.
    """
    function = undecorated(getattr(type(experiment), method))
    returns_state = method != "predict_step"
    whole, given = program_of(experiment, function, method, returns_state=returns_state)
    types = tuple(type_of(as_jax(array)) for array in given)
    try:
        plan = _trace(whole, types, _tree.structure(batch), types_of(batch))
    except Exception as error:
        given.clear()  # because the frames of the error may live on, and would own the arrays
        _explain(error, function, method, batch)
        raise
    leaves, constants = _tree.leaves(experiment), plan.program.constants
    arrays = [as_jax(leaf) for leaf, c in zip(leaves, constants, strict=True) if c is ARRAY]
    return plan, [as_type(x, t) for x, t in zip(arrays, plan.types, strict=True)]


@lru_cache(maxsize=PROGRAMS)
def _trace(whole: Program, types: Types, batch_structure: Structure, batch_types: Types) -> Plan:
    batch = _tree.unflatten(batch_structure, batch_types)
    numbers = {
        i for i, c in enumerate(whole.constants) if isinstance(c, bool | int | float | complex)
    }

    def attempt(traced: set[int]) -> Plan:
        rest = iter(types)
        constants = [ARRAY if i in traced else c for i, c in enumerate(whole.constants)]
        inputs = [
            type_of(as_jax(c)) if i in traced else next(rest)
            for i, c in enumerate(whole.constants)
            if c is ARRAY or i in traced
        ]
        return _settle(whole.with_constants(constants), inputs, batch)

    try:
        return attempt(numbers)
    except ConstantChanged as error:
        raise ExperimentError(str(error)) from None
    except Exception as error:
        if not numbers or isinstance(error, ExperimentError | DataError):
            raise
        return _attempt_with_constants(attempt, numbers, error)


def _attempt_with_constants(
    attempt: Callable[[set[int]], Plan], numbers: set[int], first: Exception
) -> Plan:
    traced: set[int] = set()
    while True:
        try:
            return attempt(traced)
        except ConstantChanged as changed:
            more = (set(changed.indices) & numbers) - traced
            if not more:
                raise ExperimentError(str(changed)) from None
            traced |= more  # more in every turn, so the loop ends
        except Exception:
            if isinstance(first, jax.errors.JAXTypeError) or "concrete" in str(first):
                raise
            raise first from None  # because numbers as arrays were not its cause


def _settle(program: Program, types: list[ShapeDtypeStruct], batch: Batch, turns: int = 3) -> Plan:
    """The plan with types that the step keeps: a Python number takes the type of its new value."""
    jaxpr, outputs = program.trace(types, batch)
    new = [type_of(aval) for aval in jaxpr.out_avals[: len(types)]]
    settled = [_settle_type(old, after) for old, after in zip(types, new, strict=True)]
    if settled != types and turns > 1:  # a new type of one number may change that of another
        # A limit, because a step that swaps an int and a float would alternate for ever.
        return _settle(program, settled, batch, turns - 1)
    program.check_drift(settled, new)
    cost, fixed = cost_of(jaxpr.jaxpr), unchanged(jaxpr.jaxpr, len(settled))
    return Plan(program, tuple(settled), outputs, cost, fixed, is_traced(jaxpr.consts))


def _nbytes(types: Iterable[ShapeDtypeStruct]) -> int:
    return sum(x.size * x.dtype.itemsize for x in types)


def _settle_type(old: ShapeDtypeStruct, new: ShapeDtypeStruct) -> ShapeDtypeStruct:
    return new if is_weak(old) and old.shape == new.shape else old


# The types of two wrappers, because their classes have no public name.
_JIT_WRAPPERS: tuple[Any, ...] = (type(jax.jit(lambda: None)), type(eqx.filter_jit(lambda: None)))


def undecorated(function: Any) -> Callable[..., Any]:
    """The function inside `jax.jit` or `filter_jit`, because the engine compiles it anyway."""
    while isinstance(function, _JIT_WRAPPERS):
        function = function.__wrapped__
    return function


def _explain(error: Exception, function: Callable[..., Any], method: str, batch: Batch) -> None:
    """Adds the batch to the error of a step; a failure to unpack it becomes a DataError."""
    given = f"{method} was given this batch: {describe_batch(batch)}"
    if isinstance(error, ValueError | TypeError) and "unpack" in str(error):
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        # Only if a line of the step itself failed: other code may unpack other things.
        if trace is not None and trace.tb_frame.f_code is getattr(function, "__code__", None):
            raise DataError(
                f"{method} cannot unpack its batch ({error}, line {trace.tb_lineno}). {given}. "
                f"Use a data set of batches that it can unpack, or change the line"
            ) from error
    if isinstance(batch, Mapping) and "'str'" in str(error):
        raise DataError(
            f"{method} fails on a text ({error}): unpacking a dict gives its names. "
            f'{given}. Write `x, y = batch["x"], batch["y"]` with your names'
        ) from error
    error.add_note(given)
    # That of an Experiment says so itself; this is one of a Metrics or a net of Equinox.
    if isinstance(error, FrozenInstanceError) and "solstice.replace" not in str(error):
        name = str(error).split("'")[1::2] or ["params"]
        error.add_note(
            f"Modules never change in place: write `self = solstice.replace(self, {name[0]}=...)` "
            f"and return `self`. In an `__init__`, declare the field in the class: `{name[0]}: Any`"
        )
