"""Program: a step as a function of arrays, with all else as constants.

An Experiment is flattened once. Its arrays go from call to call; the other leaves and the function
are a `Program`, a static argument of `jax.jit`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from solstice import _tree
from solstice._batch import describe_batch
from solstice._engine._cost import Cost, cost_of
from solstice._engine._structure import first_change
from solstice._errors import DataError, ExperimentError
from solstice._experiment import Experiment
from solstice._types import Batch, Outputs


class _Marker:
    """Marks the place of an array among the constants."""

    def __repr__(self) -> str:
        return "an array"


_ARRAY = _Marker()

PROGRAMS = 32
"""The number of newest programs in the caches. Each holds its model and optimizer, and megabytes of
code, so a sweep that makes new ones cannot keep them all."""


class Program:
    """A step without its arrays: the function, the tree structure and the constant leaves.

    Two programs are equal if they run the same code, so Experiments with the same model and
    optimizer share one compilation. A program with an unhashable leaf is equal only to itself.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, treedef: Any, constants: Sequence[Any]
    ) -> None:
        self.function = function
        self.name = name
        self.treedef = treedef
        self.constants = tuple(constants)
        self._key: Any = (  # with the types of constants, because 1 == 1.0 == True
            function,
            treedef,
            tuple((cast("Any", type(c)), c) for c in self.constants),
        )
        try:
            self._hash = hash(self._key)
        except TypeError:
            self._key, self._hash = None, id(self)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Program) and self._key is not None and self._key == other._key

    def merge(self, arrays: Sequence[Any]) -> Experiment:
        """The Experiment with these arrays."""
        rest = iter(arrays)
        leaves = [next(rest) if leaf is _ARRAY else leaf for leaf in self.constants]
        return jax.tree.unflatten(self.treedef, leaves)

    def split(self, experiment: Experiment) -> list[Any]:
        """The arrays of the Experiment that a step returned.

        Raises:
            ExperimentError: the structure has changed, or an array has become something else.
            ConstantChanged: a constant leaf has changed.
        """
        leaves = _tree.leaves(experiment)
        if _tree.structure(experiment) != self.treedef:
            raise ExperimentError(self._structure_message(experiment))
        pairs = list(zip(self.constants, leaves, strict=True))
        changed = [i for i, (old, new) in enumerate(pairs) if not _same_constant(old, new)]
        if changed:
            raise ConstantChanged(self, changed, leaves)
        arrays = [new for old, new in pairs if old is _ARRAY]
        for path, new in zip(self._array_paths(), arrays, strict=True):
            if not eqx.is_array_like(new):
                raise ExperimentError(
                    f"{self.name} returned {new!r:.60} for `{path}`, which was an array"
                )
        return arrays

    def call(self, arrays: Sequence[Any], batch: Batch) -> tuple[list[Any], Outputs]:
        """Runs one step; returns the new arrays and the outputs."""
        experiment = self.merge(arrays)
        result: Any = self.function(experiment, batch)
        if self.name == "predict_step":
            return list(arrays), result
        owner = type(experiment).__name__
        new, outputs = check_pair(result, owner, self.name)
        return [_keep_type(o, n) for o, n in zip(arrays, self.split(new), strict=True)], outputs

    def packed_call(self, arrays: list[Any], batch: Batch) -> tuple[list[Any], Outputs]:
        """`call` with packed outputs."""
        new, outputs = self.call(arrays, batch)
        return new, pack(outputs)

    @cached_property
    def traced_call(self) -> Callable[[list[Any], Batch], tuple[list[Any], Outputs]]:
        """`packed_call` under `jax.jit`, so its Python code runs once per kind of batch."""
        return cast("Any", jax.jit(self.packed_call))

    def trace(self, types: list[jax.ShapeDtypeStruct], batch: Batch) -> tuple[Any, Any]:
        """The jaxpr of a step and the shapes of its packed outputs."""
        jaxpr, shapes = cast(
            "Any", jax.make_jaxpr(self.traced_call, return_shape=True)(types, batch)
        )
        return jaxpr, shapes[1]

    def check_drift(self, old: Sequence[Any], new: Sequence[Any]) -> None:
        """Raises an ExperimentError that names the first array whose shape or dtype changed."""
        for path, before, after in zip(self._array_paths(), old, new, strict=True):
            if (before.shape, before.dtype) != (after.shape, after.dtype):
                raise ExperimentError(
                    f"{self.name} changed the type of `{path}`: it was {_short(before)} and came "
                    f"back as {_short(after)}. Each step must return the shapes and dtypes that it "
                    f"receives; {_mended(before, after)}"
                )

    def leaf_path(self, index: int) -> str:
        """`.params['w']`: the tree path of a leaf, by its index among all leaves."""
        return _tree.leaves_by_path(self._marked())[index][0]

    def _array_paths(self) -> list[str]:
        return [path for path, leaf in _tree.leaves_by_path(self._marked()) if leaf is _ARRAY]

    def _marked(self) -> Experiment:
        """The Experiment with markers in place of its arrays."""
        return jax.tree.unflatten(self.treedef, list(self.constants))

    def _structure_message(self, after: Experiment) -> str:
        before = self._marked()
        if type(before) is not type(after):
            return (
                f"{self.name} must return the same kind of Experiment: it received a "
                f"{type(before).__name__} and returned a {type(after).__name__}"
            )
        change = first_change(before, after)
        advice = (
            "A step may change arrays only: make this an array, or change a copy that it does not "
            "return"
            if change.is_static
            else "A step must return the structure that it receives; create fields that depend on "
            "the data in `setup(self, batch)`"
        )
        return (
            f"{self.name} changed the structure of {type(after).__name__} at `{change.path}`: "
            f"{change}. {advice}"
        )


def _mended(before: Any, after: Any) -> str:
    if before.shape == after.shape:
        return f"write `.astype({before.dtype})` there"
    return f"return an array of shape {before.shape} there"


def check_pair(result: Any, owner: str, method: str) -> tuple[Any, Outputs]:
    """The two results of a step.

    Raises:
        ExperimentError: the result is not a pair of an Experiment and outputs.
    """
    hint = "Write `return solstice.replace(self, ...), metrics`"
    must = f"{owner}.{method} must return a pair, the Experiment and its outputs"
    if not isinstance(result, tuple) or len(cast("tuple[Any, ...]", result)) != 2:
        raise ExperimentError(f"{must}; it returned {_kind(result)}. {hint}")
    new, outputs = cast("tuple[Any, Outputs]", result)
    if not isinstance(new, Experiment):
        raise ExperimentError(f"{must}; the first thing it returned is {_kind(new)}. {hint}")
    return new, outputs


class ConstantChanged(Exception):  # noqa: N818, caught and fixed
    """A step changed leaves that were traced as constants."""

    def __init__(self, program: Program, indices: list[int], leaves: list[Any]) -> None:
        self.indices = indices
        first = indices[0]
        super().__init__(
            f"{program.name} changed `{program.leaf_path(first)}`, which is not an array: it was "
            f"{program.constants[first]!r:.60} and came back as {leaves[first]!r:.60}. A step may "
            f"change arrays only"
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """The result of tracing a step. It is cached, and equal only to itself.

    Attributes:
        program: the step, a static argument of compiled calls.
        types: the shape and dtype of each array of the state.
        outputs: the shapes of the step's outputs, packed.
        cost: the cost of a step.
    """

    program: Program
    types: tuple[jax.ShapeDtypeStruct, ...]
    outputs: Any
    cost: Cost


def program_of(
    experiment: Experiment, function: Callable[..., Any], name: str
) -> tuple[Program, list[Any]]:
    """A function of an Experiment as a Program, and the arrays of that Experiment."""
    leaves = _tree.leaves(experiment)
    constants = [_ARRAY if _is_array(leaf) else leaf for leaf in leaves]
    program = Program(function, name, _tree.structure(experiment), constants)
    return program, [leaf for leaf in leaves if _is_array(leaf)]


def prepare(experiment: Experiment, method: str, batch: Batch) -> tuple[Plan, list[Array]]:
    """The plan of a step, and the initial arrays.

    Python numbers among the leaves become arrays, so a new value compiles nothing. If that fails,
    because a number sets a shape or a branch, those that the step does not change stay constants.
    Plans are cached, so the same step is not traced twice.
    """
    function = undecorated(getattr(type(experiment), method))
    whole, given = program_of(experiment, function, method)
    types = tuple(type_of(_as_jax(array)) for array in given)
    batch_types = tuple(type_of(leaf) for leaf in _tree.leaves(batch))
    try:
        plan = _trace(whole, types, _tree.structure(batch), batch_types)
    except Exception as error:
        _explain(error, function, method, batch)
        raise
    leaves, kept = _tree.leaves(experiment), plan.program.constants
    arrays = [_as_jax(leaf) for leaf, c in zip(leaves, kept, strict=True) if c is _ARRAY]
    return plan, [_as_type(x, t) for x, t in zip(arrays, plan.types, strict=True)]


@lru_cache(maxsize=PROGRAMS)
def _trace(
    whole: Program,
    types: tuple[jax.ShapeDtypeStruct, ...],
    batch_structure: Any,
    batch_types: tuple[jax.ShapeDtypeStruct, ...],
) -> Plan:
    batch = jax.tree.unflatten(batch_structure, batch_types)
    numbers = {
        i for i, c in enumerate(whole.constants) if isinstance(c, bool | int | float | complex)
    }

    def attempt(traced: set[int]) -> Plan:
        rest = iter(types)
        constants = [_ARRAY if i in traced else c for i, c in enumerate(whole.constants)]
        program = Program(whole.function, whole.name, whole.treedef, constants)
        inputs = [
            type_of(jnp.asarray(c)) if i in traced else next(rest)
            for i, c in enumerate(whole.constants)
            if c is _ARRAY or i in traced
        ]
        return _settle(program, inputs, batch)

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
            traced |= more
        except Exception:
            if isinstance(first, jax.errors.JAXTypeError) or "concrete" in str(first):
                raise
            raise first from None  # because numbers as arrays were not its cause


def _settle(program: Program, types: list[jax.ShapeDtypeStruct], batch: Batch) -> Plan:
    """The plan with types that the step keeps: a Python number takes the type of its new value."""
    new: list[jax.ShapeDtypeStruct] = []
    jaxpr = outputs = None
    for _ in range(3):  # because a new type of one number may change the type of another
        jaxpr, outputs = program.trace(types, batch)
        new = [type_of(aval) for aval in jaxpr.out_avals[: len(types)]]
        settled = [_settle_type(old, after) for old, after in zip(types, new, strict=True)]
        done = settled == types
        types = settled
        if done:
            break
    program.check_drift(types, new)
    return Plan(program, tuple(types), outputs, cost_of(cast("Any", jaxpr).jaxpr))


def _settle_type(old: jax.ShapeDtypeStruct, new: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return new if _is_weak(old) and old.shape == new.shape else old


def type_of(x: Any) -> jax.ShapeDtypeStruct:
    """The shape, JAX's dtype, and whether the type is weak."""
    dtype = jax.dtypes.canonicalize_dtype(x.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(x.shape, dtype, weak_type=_is_weak(x))


def _as_jax(leaf: Any) -> Array:
    return leaf if isinstance(leaf, Array) else jnp.asarray(leaf)


def _as_type(x: Array, like: jax.ShapeDtypeStruct) -> Array:
    if x.dtype != like.dtype:
        x = x.astype(like.dtype)
    return x if _is_weak(like) else strong(x)


def _keep_type(old: Any, new: Any) -> Any:
    """The new array without a new weak type, because that would compile a second program."""
    new = jnp.asarray(new)
    return new if _is_weak(old) else strong(new)


def strong(x: Array) -> Array:
    """The same array without a weak type."""
    return lax.convert_element_type(x, x.dtype) if _is_weak(x) else x


def _is_weak(x: Any) -> bool:
    """Whether an array is weakly typed, as Python numbers are."""
    return getattr(x, "weak_type", False)  # typed PRNG keys have no such attribute


@jax.tree_util.register_static
class _Constant:
    """A leaf of outputs that is not an array, as a static node of a compiled call's result."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and _same_constant(self.value, other.value)

    def __hash__(self) -> int:
        return hash(cast("Any", type(self.value)))


def pack(tree: Any) -> Any:
    """A tree that a compiled function can return: numbers as arrays, other leaves as constants."""

    def leaf(value: Any) -> Any:
        return strong(jnp.asarray(value)) if eqx.is_array_like(value) else _Constant(value)

    return jax.tree.map(leaf, tree)


def unpack(tree: Any) -> Any:
    """The inverse of `pack`."""

    def is_constant(node: Any) -> bool:
        return isinstance(node, _Constant)

    def value(node: Any) -> Any:
        return node.value if is_constant(node) else node

    return jax.tree.map(value, tree, is_leaf=is_constant)


_JIT_WRAPPERS: tuple[Any, ...] = (type(jax.jit(lambda: None)), type(eqx.filter_jit(lambda: None)))


def undecorated(function: Any) -> Callable[..., Any]:
    """The function inside `jax.jit` or `filter_jit`, because the engine compiles it anyway."""
    while isinstance(function, _JIT_WRAPPERS):
        function = function.__wrapped__
    return function


def _explain(error: Exception, function: Any, method: str, batch: Batch) -> None:
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


def _is_array(leaf: Any) -> bool:
    numpy: Any = np.ndarray | np.generic
    if isinstance(leaf, numpy):
        return leaf.dtype.kind not in "OSUmM"
    return isinstance(leaf, Array)


def _same_constant(old: Any, new: Any) -> bool:
    if old is _ARRAY or old is new:
        return True
    try:
        return type(old) is type(new) and bool(old == new)
    except Exception:
        return False


def _short(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(cast('tuple[Any, ...]', value))}"
    return "None" if value is None else f"a {type(value).__name__}"
