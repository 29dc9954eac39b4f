"""A batch of a Task for one step: its parts, the weights of its losses, and their checks."""

from typing import NamedTuple, cast

import jax.numpy as jnp
from jax import Array

from solstice import _tree
from solstice._batch import describe_batch
from solstice._errors import DataError
from solstice._metrics import at_least_float32
from solstice._shares import are_weights, check_weights, counting, of_triple, poisoned, product
from solstice._types import AnyArray, Batch, Inputs, Targets
from solstice.data import weights_of
from solstice.experiments._checks import (
    check_lengths,
    check_mask,
    parts_of,
    shape_of,
    spread,
    unmasked,
)
from solstice.experiments._task import Task, has_pairs


class Parts(NamedTuple):
    """A batch for one step."""

    inputs: Inputs
    targets: Targets
    mask: AnyArray | None
    """Which targets count; None if all do."""
    weights: AnyArray | None
    """The weights of targets, floats of their first axes; None if the batch has none."""


def taken_apart(task: Task, batch: Batch) -> Parts:
    """The parts of a batch, after the checks of shapes.

    It calls the functions of the class: a bound method of an `equinox.Module` costs 10 us, and this
    runs on the host for every batch.
    """
    bare, given = (weights_of if has_pairs(task) else unmasked)(batch)
    # Weights of examples pass by the task, and are not in its mask: under `jax.vmap` over weights,
    # the losses do not depend on them, and are computed once.
    by_row = given if are_weights(given) and given.ndim == 1 else None
    x, y, found = _of_task(task, bare, given if by_row is None else None)
    if are_weights(given) and by_row is None and not are_weights(found):
        raise TypeError(
            f"{type(task).__name__}.split must return the weights of the targets, in floats; it "
            f"was given {describe_batch(given)} in place of a mask, and returned "
            f"{describe_batch(found)}"
        )
    check_mask(found, y)
    weights = found if are_weights(found) else None
    if by_row is not None:
        check_mask(by_row, y)
        weights = by_row if weights is None else product(by_row, weights)
    return Parts(x, y, None if found is None else counting(found), weights)


def _of_task(
    task: Task, batch: Batch, mask: AnyArray | None
) -> tuple[Inputs, Targets, AnyArray | None]:
    kind = type(task)
    parts = cast("object", kind.split(task, batch, mask))
    if not isinstance(parts, tuple) or len(cast("tuple[object, ...]", parts)) != 3:
        raise TypeError(
            f"{kind.__name__}.split must return `x, targets, mask`, with None for no mask; it "
            f"returned {describe_batch(parts)}"
        )
    x, y, mask = cast("tuple[Inputs, Targets, AnyArray | None]", parts)
    check_lengths(x, y)
    kind.check(task, x, y)
    return x, y, mask


def check_values(task: Task, batch: Batch) -> None:
    """The checks of the values of a batch, or of stacked ones."""
    bare, given = parts_of(batch)
    if has_pairs(task):
        bare, given = of_triple(bare, given)
    check_weights(given)
    type(task).check_values(task, bare, None if given is None else counting(given))


def weights_of_losses(
    task: Task, y: Targets, mask: AnyArray | None, weights: AnyArray | None, losses: Array
) -> AnyArray | None:
    """The weights of the losses: those of the task times those of the batch."""
    of_task = task.weights(y, mask, losses)
    _check_weights(task, of_task, losses)
    if weights is None:
        return None if of_task is None else spread(of_task, losses)
    _check_weights(task, weights, losses)
    given = spread(poisoned(weights), losses)
    return given if of_task is None else product(given, spread(jnp.asarray(of_task), losses))


def weights_of_metrics(weights: AnyArray, counts: Array) -> Array:
    """The weights in the shape of the mask, 0 where it is false."""
    given = at_least_float32(weights)
    return jnp.where(counts, jnp.broadcast_to(spread(given, counts), counts.shape), 0)


def without_weights(task: Task, *, is_own: bool) -> str:
    """The message about `metrics` that cannot take the weights of a batch."""
    parameters = "outputs, targets, mask, weights=None"
    name = f"`{type(task).__name__}.metrics`" if is_own else "the function `metrics`"
    code = f"def metrics(self, {parameters}):" if is_own else f"metrics=lambda {parameters}: ..."
    return (
        f"the batch has weights, and {name} has no parameter for them: write `{code}`, and use "
        f"`weights=weights` in the metrics"
    )


def check_losses(losses: Array, size: int) -> None:
    """Raises a ValueError unless there is a loss for each of `size` examples."""
    if shape_of(losses)[:1] != (size,):
        raise ValueError(
            f"the loss must be one number for each of the {size} examples, of shape [n] or "
            f"[n, ...], without a mean; it is {describe_batch(losses)}"
        )
    if not jnp.issubdtype(losses.dtype, jnp.inexact):
        raise ValueError(
            f"the loss is {describe_batch(losses)}, which has no gradient, so nothing would be "
            f"learned: compute it from the outputs of the model, in floats"
        )


def _check_weights(task: Task, weights: AnyArray | None, losses: Array) -> None:
    if weights is None:
        return
    if not hasattr(weights, "ndim"):
        raise TypeError(
            f"{type(task).__name__}.weights must return an array or None; it returned "
            f"{weights!r:.60}"
        )
    if weights.ndim > losses.ndim:
        raise DataError(
            f"the loss has one number for each example, but the mask one for each element: "
            f"{describe_batch(weights)}. Give a mask of shape [n], or a loss without a mean"
        )


def blanked(targets: Targets, mask: AnyArray | None, weights: AnyArray | None) -> Targets:
    """Targets with 0 where they are masked: NaN times a weight of 0 would still be NaN."""

    def blank(y: AnyArray) -> AnyArray:
        shares = (mask, weights if jnp.issubdtype(y.dtype, jnp.inexact) else None)
        for given in (counting(share) for share in shares if share is not None):
            y = jnp.where(spread(given, y), y, jnp.zeros_like(y))
        return y

    return targets if mask is weights is None else _tree.map(blank, targets)
