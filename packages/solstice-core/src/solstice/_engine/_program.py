"""Program: a step as a function of arrays, with all else as constants.

An Experiment is flattened once. Its arrays go from call to call; the other leaves and the function
are a `Program`, a static argument of `jax.jit`.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeAlias, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct

from solstice import _tree
from solstice._batch import is_numeric
from solstice._engine._pack import as_jax, as_type, is_same_constant, is_weak, pack, strong
from solstice._engine._structure import first_change
from solstice._errors import ExperimentError
from solstice._experiment import Experiment
from solstice._types import Batch, Outputs, PyTree, Structure

PROGRAMS = 32
"""The number of newest programs in the caches. Each holds its model and optimizer, and megabytes of
code, so a sweep that makes new ones cannot keep them all."""

Step: TypeAlias = Callable[[list[Array], Batch], tuple[list[Array], PyTree]]
"""One step: arrays and a batch to new arrays and packed outputs."""


class _Marker:
    """Marks the place of an array among the constants."""

    def __repr__(self) -> str:
        return "an array"


ARRAY = _Marker()


class Program:
    """A step without its arrays: the function, the tree structure and the constant leaves.

    Two programs are equal if they run the same code, so Experiments with the same model and
    optimizer share one compilation. A program with an unhashable leaf is equal only to itself.

    Args:
        function: the step, a function of an Experiment and a batch.
        name: its name in messages.
        returns_state: whether it returns the Experiment too. `predict_step` does not.
        treedef: the structure of the Experiment.
        constants: its leaves, with `ARRAY` in place of arrays.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        treedef: Structure,
        constants: Sequence[object],
        *,
        returns_state: bool = True,
    ) -> None:
        self.function = function
        self.name = name
        self.returns_state = returns_state
        self.treedef = treedef
        self.constants = tuple(constants)
        types = tuple(map(type, self.constants))  # because 1 == 1.0 == True
        self._key: tuple[object, ...] | None = (function, treedef, types, self.constants)
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

    def with_constants(self, constants: Sequence[object]) -> "Program":
        """The same step with other constants."""
        returns_state = self.returns_state
        return Program(
            self.function, self.name, self.treedef, constants, returns_state=returns_state
        )

    def has_state_of(self, other: "Program") -> bool:
        """Whether the arrays of one are those of the other, beside the same constants."""
        pairs = zip(self.constants, other.constants, strict=True)
        return self.treedef == other.treedef and all(is_same_constant(*pair) for pair in pairs)

    def merge(self, arrays: Sequence[Array | ShapeDtypeStruct]) -> Experiment:
        """The Experiment with these arrays."""
        rest = iter(arrays)
        leaves = [next(rest) if leaf is ARRAY else leaf for leaf in self.constants]
        return _tree.unflatten(self.treedef, leaves)

    def split(self, experiment: Experiment) -> list[Array]:
        """The arrays of the Experiment that a step returned.

        Raises:
            ExperimentError: the structure has changed, or an array has become something else.
            ConstantChanged: a constant leaf has changed.
        """
        leaves = _tree.leaves(experiment)
        if _tree.structure(experiment) != self.treedef:
            raise ExperimentError(self._structure_message(experiment))
        pairs = list(zip(self.constants, leaves, strict=True))
        changed = [
            index
            for index, (old, new) in enumerate(pairs)
            if old is not ARRAY and not is_same_constant(old, new)
        ]
        if changed:
            raise ConstantChanged(self, changed, leaves)
        arrays = [new for old, new in pairs if old is ARRAY]
        for path, new in zip(self._array_paths(), arrays, strict=True):
            if not eqx.is_array_like(new):
                raise ExperimentError(
                    f"{self.name} returned {new!r:.60} for `{path}`, which was an array"
                )
        return arrays

    def arrays_like(
        self, experiment: Experiment, types: Sequence[ShapeDtypeStruct]
    ) -> list[Array] | None:
        """The arrays of another Experiment; None if its step is another program.

        Args:
            experiment: an Experiment of the same class.
            types: the shape and dtype of each array of this program.
        """
        try:
            arrays = [as_jax(array) for array in self.split(experiment)]
        except (ExperimentError, ConstantChanged):
            return None
        pairs = list(zip(arrays, types, strict=True))
        if not all(_fits(x, t) for x, t in pairs):
            return None
        return [as_type(x, t) for x, t in pairs]

    def call(self, arrays: list[Array], batch: Batch) -> tuple[list[Array], PyTree]:
        """Runs one step; returns the new arrays and the packed outputs."""
        experiment = self.merge(arrays)
        result: object = self.function(experiment, batch)
        if not self.returns_state:
            return list(arrays), pack(result)
        new, outputs = check_pair(result, type(experiment).__name__, self.name)
        pairs = zip(arrays, self.split(new), strict=True)
        return [_keep_type(old, now) for old, now in pairs], pack(outputs)

    @cached_property
    def traced_call(self) -> Step:
        """`call` under `jax.jit`, so its Python code runs once per kind of batch."""
        return jax.jit(self.call)

    def trace(self, types: Sequence[ShapeDtypeStruct], batch: Batch) -> tuple[Any, PyTree]:
        """The jaxpr of a step and the shapes of its packed outputs."""
        # The jitted step, because the compiled loop then finds its trace in JAX's cache.
        make = jax.make_jaxpr(self.traced_call, return_shape=True)
        jaxpr, shapes = cast("Any", make)(list(types), batch)
        return jaxpr, shapes[1]

    def check_drift(
        self, old: Sequence[Array | ShapeDtypeStruct], new: Sequence[Array | ShapeDtypeStruct]
    ) -> None:
        """Raises an ExperimentError that names the first array whose shape or dtype changed."""
        for path, before, after in zip(self._array_paths(), old, new, strict=True):
            if (before.shape, before.dtype) != (after.shape, after.dtype):
                raise ExperimentError(
                    f"{self.name} changed the type of `{path}`: it was {_short(before)} and came "
                    f"back as {_short(after)}. Each step must return the shapes and dtypes that it "
                    f"receives; {_fixed(before, after)}"
                )

    def leaf_path(self, index: int) -> str:
        """`.params['w']`: the tree path of a leaf, by its index among all leaves."""
        return _tree.leaves_by_path(self._marked())[index][0]

    def array_names(self) -> list[str]:
        """`params/dense/kernel`: the path of each array, as `solstice.summary` shows it."""
        named = _tree.leaves_by_slashes(self._marked()).items()
        return [name for name, leaf in named if leaf is ARRAY]

    def _array_paths(self) -> list[str]:
        return [path for path, leaf in _tree.leaves_by_path(self._marked()) if leaf is ARRAY]

    def _marked(self) -> Experiment:
        """The Experiment with markers in place of its arrays."""
        return _tree.unflatten(self.treedef, list(self.constants))

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


def program_of(
    experiment: Experiment, function: Callable[..., Any], name: str, *, returns_state: bool = True
) -> tuple[Program, list[Any]]:
    """A function of an Experiment as a Program, and the arrays of that Experiment."""
    leaves, structure = _tree.flatten(experiment)
    constants = [ARRAY if _is_array(leaf) else leaf for leaf in leaves]
    program = Program(function, name, structure, constants, returns_state=returns_state)
    return program, [leaf for leaf in leaves if _is_array(leaf)]


def check_pair(result: Any, owner: str, method: str) -> tuple[Experiment, Outputs]:
    """The two results of a step.

    Raises:
        ExperimentError: the result is not a pair of an Experiment and outputs.
    """
    hint = "Write `return solstice.replace(self, ...), metrics`"
    must = f"{owner}.{method} must return a pair, the Experiment and its outputs"
    if not isinstance(result, tuple) or len(cast("tuple[object, ...]", result)) != 2:
        raise ExperimentError(f"{must}; it returned {_kind(result)}. {hint}")
    new, outputs = cast("tuple[object, Outputs]", result)
    if not isinstance(new, Experiment):
        raise ExperimentError(f"{must}; the first thing it returned is {_kind(new)}. {hint}")
    return new, outputs


def _keep_type(old: Array, new: Any) -> Array:
    """The new array without a new weak type, because that would compile a second program."""
    new = jnp.asarray(new)
    return new if is_weak(old) else strong(new)


def _fits(x: Array, like: ShapeDtypeStruct) -> bool:
    """Whether an array can have a type: a weak one becomes strong, and not the other way."""
    return (x.shape, x.dtype) == (like.shape, like.dtype) and is_weak(x) >= is_weak(like)


def _is_array(leaf: object) -> bool:
    if isinstance(leaf, np.generic):  # a scalar of NumPy
        return leaf.dtype.kind not in "OSUmM"  # kinds that JAX does not have: objects, text, times
    return is_numeric(leaf)


def _fixed(before: Any, after: Any) -> str:
    if before.shape == after.shape:
        return f"write `.astype({before.dtype})` there"
    return f"return an array of shape {before.shape} there"


def _short(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(cast('tuple[object, ...]', value))}"
    return "None" if value is None else f"a {type(value).__name__}"
