"""Members: built by a function, or given as a list, as one tree with the members on axis 0."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct

from solstice import _tree
from solstice._engine import (
    Change,
    Program,
    changes,
    is_same_constant,
    line_of,
    program_of,
    type_of,
)
from solstice._errors import ExperimentError
from solstice._experiment import Experiment, check_experiment
from solstice._types import Batch, Structure
from solstice.population._hyperparameters import Hyperparameters, numbers_of, one_of

Make = Callable[..., Any]
"""A function of hyperparameters that returns an Experiment."""

_NUMBERS = (bool, int, float, complex)

_SHARE = "Share the model and the optimiser, or build them inside `make` from its arguments"


@dataclass(frozen=True)
class BatchLike:
    """The structure and the types of a batch."""

    structure: Structure
    types: tuple[ShapeDtypeStruct, ...]

    @staticmethod
    def of(batch: Batch) -> "BatchLike":
        """Those of a batch of arrays."""
        leaves, structure = _tree.flatten(batch)
        return BatchLike(structure, tuple(map(_type_of, leaves)))

    def zeros(self, zeros: Callable[[Any, Any], Any]) -> Batch:
        """A batch of zeros, `np.zeros` or `jnp.zeros`, where values do not matter."""
        leaves = [zeros(like.shape, like.dtype) for like in self.types]
        return _tree.unflatten(self.structure, leaves)


def split(experiment: Experiment) -> tuple[Program, list[Any]]:
    """An Experiment without its arrays, and these."""
    return program_of(experiment, type(experiment).train_step, "train_step")


def _named(experiment: Experiment) -> dict[str, Any]:
    """The arrays of an Experiment, by path."""
    program, arrays = split(experiment)
    return dict(zip(program.array_names(), arrays, strict=True))


def made(make: Make, values: Mapping[str, Any], batch: Batch) -> Experiment:
    """The Experiment of these hyperparameters, set up with a batch.

    Raises:
        TypeError: `make` returns something else.
    """
    experiment = make(**values)
    if not isinstance(experiment, Experiment):
        raise TypeError(f"`make` must return a solstice.Experiment; it returned {experiment!r:.60}")
    check_experiment(experiment)
    return experiment.setup(batch)


def grafted(fresh: Experiment, member: Experiment) -> Experiment:
    """An Experiment that was made for its static parts, with the arrays of a member.

    Raises:
        ExperimentError: they have arrays of other shapes.
    """
    leaves, mine = _tree.leaves_by_slashes(fresh), _named(member)
    # The Trainer makes arrays of Python numbers, which are numbers in what is made.
    numbers = {path for path, leaf in leaves.items() if isinstance(leaf, _NUMBERS)}
    check_like({path: x for path, x in mine.items() if path not in numbers}, _named(fresh))
    return _tree.unflatten(_tree.structure(fresh), {**leaves, **mine}.values())


def built(make: Make, hyperparameters: Hyperparameters, batch: Batch) -> tuple[Experiment, bool]:
    """The members of a population, and whether `make` can be traced.

    They are made under `jax.vmap` if it can, and one by one if not.

    Raises:
        ExperimentError: the members differ in more than the values of arrays.
    """
    try:
        shapes = _traced(make, hyperparameters, batch)
    except Exception as error:  # of a value that must be concrete, or of NumPy
        return _one_by_one(make, hyperparameters, batch, error), False
    first = made(make, one_of(hyperparameters, 0), batch)
    check_like(_named(first), {path: _row_of(like) for path, like in shapes.items()})

    def values_of(values: Mapping[str, Any]) -> list[Array]:
        return [jnp.asarray(x) for x in split(made(make, values, batch))[1]]

    return split(first)[0].merge(jax.vmap(values_of)(hyperparameters)), True


def stacked(members: Sequence[Experiment], advice: Callable[[], str]) -> Experiment:
    """Experiments as one, with the members on axis 0 of each array.

    Raises:
        ExperimentError: they differ in more than the values of arrays.
    """
    numbers = _numbers(members)
    trees = [_with_arrays_for(numbers, one) for one in members]
    (program, first), *others = map(split, trees)
    for index, (other, arrays) in enumerate(others, 1):
        found = list(differences(members[0], members[index], program, other))
        if found:
            raise ExperimentError(_difference_message(found, index, advice()))
        named = dict(zip(other.array_names(), arrays, strict=True))
        check_like(_named(trees[0]), named, f"member {index}")
    columns = zip(*[arrays for _, arrays in [(program, first), *others]], strict=True)
    return program.merge([jnp.stack(column) for column in columns])


def differences(
    first: Experiment, other: Experiment, program: Program, theirs: Program
) -> list[Change]:
    """What differs between two members, except the values of arrays."""
    if program.treedef != theirs.treedef:
        return list(changes(first, other))
    paths = [path for path, _ in _tree.leaves_by_path(first)]
    triples = zip(paths, program.constants, theirs.constants, strict=True)
    return [
        Change(path, mine, yours, is_static=True)
        for path, mine, yours in triples
        if not is_same_constant(mine, yours)
    ]


def check_like(
    first: Mapping[str, Any],
    other: Mapping[str, Any],
    who: str = "a member that is made from traced hyperparameters",
) -> None:
    """Raises an ExperimentError if another member than the first has other arrays.

    Args:
        first: the arrays of the first, or their types, by path.
        other: those of the other.
        who: the other member.
    """
    for path in {**first, **other}:
        one, two = (_kind(x[path]) if path in x else "nothing" for x in (first, other))
        if one != two:
            raise ExperimentError(
                f"the members of a population must have arrays of the same shapes: `{path}` is "
                f"{one} in member 0, and {two} in {who}. A hyperparameter that sets a shape needs "
                f"a Population for each of its values"
            )


def culprits(run: Callable[[Mapping[str, Any]], object], values: Mapping[str, Any]) -> list[str]:
    """The hyperparameters with which a function cannot be traced, if it can without them.

    Args:
        run: a function of hyperparameters.
        values: concrete ones.
    """
    if not _can_trace(run, values, {}):
        return []
    return [name for name in values if not _can_trace(run, values, {name: values[name]})]


def _can_trace(
    run: Callable[[Mapping[str, Any]], object], values: Mapping[str, Any], some: dict[str, Any]
) -> bool:
    def of_some(traced: Mapping[str, Any]) -> None:
        run({**values, **traced})

    try:
        _tree.eval_shape(of_some, some)
    except Exception:
        return False
    return True


def concrete_message(names: Sequence[str], error: Exception) -> str:
    """A sentence on the hyperparameters that cannot be traced."""
    if not names:
        return f"`make` cannot be traced: {line_of(error)}: {error!s:.200}"
    which = " and ".join(f"`{name}`" for name in names)
    return (
        f"{which} must be {'arrays' if len(names) > 1 else 'an array'} of JAX in `make` and in "
        f"steps, because all members are one program, and a number of Python is needed here: "
        f"{line_of(error)}"
    )


def _traced(make: Make, hyperparameters: Hyperparameters, batch: Batch) -> dict[str, Any]:
    """The types of the members' arrays, by path, if they are made under `jit` and `vmap`."""

    def one(values: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
        named = _named(made(make, values, batch))
        return {path: jnp.asarray(x) for path, x in named.items()}

    def every(values: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
        return cast("Any", jax.vmap(partial(one, batch=batch)))(values)

    return _tree.eval_shape(every, hyperparameters, batch)


def _one_by_one(
    make: Make, hyperparameters: Hyperparameters, batch: Batch, why: Exception
) -> Experiment:
    size = len(next(iter(hyperparameters.values())))
    rows = [numbers_of(hyperparameters, row) for row in range(size)]
    members = [made(make, values, batch) for values in rows]

    def run(values: Mapping[str, Any]) -> object:
        return made(make, values, batch)

    def advice() -> str:
        names = culprits(run, rows[0])
        return f"{_SHARE}. {concrete_message(names, why)}"

    return stacked(members, advice)


def _difference_message(found: Sequence[Change], index: int, advice: str) -> str:
    # An attribute that frameworks use internally often repeats another one.
    found = [one for one in found if "._" not in one.path] or found
    lines = "".join(f"\n  `{one.path}`: {one.words}" for one in found[:8])
    more = f"\n  and {len(found) - 8} more" if len(found) > 8 else ""
    return (
        f"the members of a population may differ in the values of arrays only. Member {index} "
        f"differs from member 0 in:{lines}{more}\n{advice}"
    )


def _numbers(members: Sequence[Experiment]) -> list[bool]:
    """For each leaf, whether it is a Python number with other values in other members."""
    columns = [_tree.leaves(member) for member in members]
    if len({len(column) for column in columns}) > 1:
        return []
    kinds = bool | int | float | complex
    return [
        all(isinstance(x, kinds) for x in row) and not all(is_same_constant(row[0], x) for x in row)
        for row in zip(*columns, strict=True)
    ]


def _with_arrays_for(numbers: Sequence[bool], member: Experiment) -> Experiment:
    """A member with arrays in place of these numbers, which can then be stacked."""
    leaves, structure = _tree.flatten(member)
    if not any(numbers):
        return member
    pairs = zip(numbers, leaves, strict=True)
    return _tree.unflatten(structure, [jnp.asarray(x) if one else x for one, x in pairs])


def _type_of(leaf: Any) -> ShapeDtypeStruct:
    like = type_of(leaf if hasattr(leaf, "dtype") else np.asarray(leaf))
    return ShapeDtypeStruct(like.shape, like.dtype)


def _row_of(like: Any) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(like.shape[1:], like.dtype)


def _kind(array: Any) -> str:
    like = _type_of(array)
    return f"{like.dtype}{list(like.shape)}"
