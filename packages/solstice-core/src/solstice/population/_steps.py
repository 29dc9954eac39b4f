"""Steps of a population: the step of a member under `jax.vmap`, with one batch for all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._engine import (
    ConstantChanged,
    Program,
    line_of,
    pack,
    program_of,
    undecorated,
    unpack,
)
from solstice._errors import ExperimentError
from solstice._experiment import Experiment
from solstice._metrics import Metrics, as_metrics, without_metrics
from solstice._types import Batch, Outputs
from solstice.population._hyperparameters import Hyperparameters
from solstice.population._members import (
    concrete_message,
    culprits,
    grafted,
    split,
)


@dataclass(frozen=True)
class Stepped:
    """The results of a step of all members, with the members on axis 0.

    Attributes:
        members: the members after the step.
        metrics: their metrics; None if there are none.
        others: their other outputs, by path; for `predict_step`, its outputs.
    """

    members: Experiment
    metrics: Metrics | None
    others: Any


def stepped(
    members: Experiment,
    method: str,
    batch: Batch,
    hyperparameters: Hyperparameters,
    is_active: Array | None,
    rebuild: Callable[[Mapping[str, Any]], Experiment] | None,
) -> Stepped:
    """One step of all members.

    `rebuild` is called in each trace, so that hyperparameters reach the model and the optimiser as
    traced values wherever they are used. The arrays of the member replace those that it makes,
    which XLA then drops. Without it, all members share the static parts of the first.

    Raises:
        ExperimentError: a hyperparameter is needed as a number of Python, or the step breaks its
            contract.
    """
    template, arrays = split(members)

    def rebuilt(arrays: list[Array], values: Mapping[str, Any]) -> Experiment:
        own = template.merge(arrays)
        return own if rebuild is None else grafted(rebuild(values), own)

    def one(
        arrays: list[Array], values: Mapping[str, Any], is_active: Array | None, batch: Batch
    ) -> Any:
        kept, outputs = _call(rebuilt(arrays, values), method, batch)
        if is_active is not None:
            pairs = zip(kept, arrays, of_arrays, strict=True)
            kept = [jnp.where(is_active, x, y) if axis == 0 else x for x, y, axis in pairs]
        if method == "predict_step":
            return kept, None, outputs
        outputs = unpack(outputs)
        metrics = pack(as_metrics(outputs, batch))
        return kept, metrics, pack(without_metrics(outputs))

    copies, axes = _for_each(batch, next(x.shape[0] for x in arrays if x.ndim))
    # The Trainer makes arrays of the Python numbers among the leaves, the same for all members.
    of_arrays = [0 if x.ndim else None for x in arrays]
    of_mask = None if is_active is None else 0
    over_members = cast(
        "Any", jax.vmap(one, in_axes=(of_arrays, 0, of_mask, axes), out_axes=(of_arrays, 0, 0))
    )
    try:
        mapped = over_members(arrays, hyperparameters, is_active, copies)
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        raise ExperimentError(_number_message(template, of_arrays, method)) from error
    except jax.errors.JAXTypeError as error:
        run = _first_of(one, arrays, is_active, batch)
        names = culprits(run, _examples(hyperparameters)) if rebuild is not None else []
        kind = type(members).__name__
        raise ExperimentError(_traced_message(f"{kind}.{method}", names, error)) from error
    new, metrics, others = mapped
    return Stepped(template.merge(new), unpack(metrics), unpack(others))


def _call(member: Experiment, method: str, batch: Batch) -> tuple[list[Array], Outputs]:
    """The arrays of a member after a step, and the packed outputs."""
    function = undecorated(getattr(type(member), method))
    returns_state = method != "predict_step"
    program, arrays = program_of(member, function, method, returns_state=returns_state)
    try:
        new, outputs = program.call(arrays, batch)
    except ConstantChanged as error:
        raise ExperimentError(
            f"{error}. In a population, make it an array: `jnp.asarray(...)`"
        ) from None
    program.check_drift(arrays, new)
    return new, outputs


def _for_each(batch: Batch, size: int) -> tuple[Batch, Any]:
    """The batch for `jax.vmap`, with a copy for each member of some arrays, and its axes.

    Rows of features often meet a matrix product first. With the same rows for all members, XLA
    makes one product of all weights, and transposes them and their gradients in every step. Copies
    of the rows are smaller. Other arrays, such as images and tokens, are shared.
    """

    def is_rows(leaf: Array) -> bool:
        return leaf.ndim == 2 and jnp.issubdtype(leaf.dtype, jnp.floating)

    def copied(leaf: Array) -> Array:
        return jnp.broadcast_to(leaf, (size, *leaf.shape)) if is_rows(leaf) else leaf

    def axis(leaf: Array) -> int | None:
        return 0 if is_rows(leaf) else None

    return _tree.map(copied, batch), _tree.map(axis, batch)


def _first_of(
    one: Callable[..., Any], arrays: list[Array], is_active: Array | None, batch: Batch
) -> Callable[[Mapping[str, Any]], object]:
    def run(values: Mapping[str, Any]) -> object:
        first = [x[0] if x.ndim else x for x in arrays]
        return one(first, values, None if is_active is None else is_active[0], batch)

    return run


def _examples(hyperparameters: Hyperparameters) -> dict[str, Any]:
    """A value for each hyperparameter, concrete within a trace; a key stays traced."""
    return {
        name: values[0] if _tree.is_key(values) else np.ones(values.shape[1:], values.dtype)[()]
        for name, values in hyperparameters.items()
    }


def _number_message(template: Program, of_arrays: Sequence[int | None], method: str) -> str:
    paths = zip(template.array_names(), of_arrays, strict=True)
    numbers = [f"`{path}`" for path, axis in paths if axis is None]
    return (
        f"{method} of a population gives members other values of {' or '.join(numbers)}, which is "
        f"one number of Python for all. Make it an array: `jnp.asarray(...)`"
    )


def _traced_message(step: str, names: Sequence[str], error: Exception) -> str:
    if names:
        return (
            f"{step} of a population: {concrete_message(names, error)}. Use a layer or an "
            f"optimiser that takes an array there, or make one Population for each value"
        )
    return (
        f"{step} cannot be compiled, and a population needs that: {line_of(error)}. Write it with "
        f"jax.numpy, jnp.where and jax.lax.cond"
    )
