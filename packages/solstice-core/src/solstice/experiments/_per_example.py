"""What each example of a batch contributes to the loss and to the gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import Array

from solstice import _tree
from solstice._types import Batch
from solstice.compat import Params, State, norms_of
from solstice.experiments._gradients import Loss
from solstice.experiments._parts import each_part, quotient, weighted_rows

_BYTES = 2**28
"""The size of what is in memory together, for the gradients of several examples."""

_MOST = 16
"""The most gradients together."""


class PerExample(NamedTuple):
    """`losses, norms = exp.per_example(batch)`: one number for each example.

    Attributes:
        loss: the loss of the example, the weighted mean of its entries; 0 if it has no weight.
        gradient_norm: the Euclidean norm of its part of the gradient of the step. These parts add
            up to the gradient.
    """

    loss: Array
    gradient_norm: Array


Contributions: TypeAlias = tuple[Array, Array, Array]
"""Of each example: the norm of the gradient of its weighted losses, their sum, their weight."""


def contributions(
    rows: Callable[[Params], tuple[Array, tuple[Array, State]]], params: Params
) -> tuple[Contributions, State]:
    """The contributions of the examples of a batch, and the model's state.

    The batch goes through the model once, as in training, so that the gradients of the examples add
    up to that of the batch, also where the examples depend on each other, as under BatchNorm.

    Args:
        rows: a function of the params: the sum of the weighted losses of each example, of shape
            [n]; and the sums of their weights, with the model's state.
        params: where the gradients are taken.
    """
    there: tuple[Array, Callable[[Array], tuple[Params]], tuple[Array, State]]
    there = cast("Any", jax.vjp)(rows, params, has_aux=True)
    sums, pull, (weights, state) = there

    def norm(row: Array) -> Array:
        (gradient,) = pull(jax.nn.one_hot(row, sums.size, dtype=sums.dtype))
        return norms_of(gradient, 0)[""]

    # Each gradient needs as much again, at most, as the backward pass keeps of the forward pass.
    nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in _tree.leaves((params, pull)))
    together = min(max(_BYTES // max(nbytes, 1), 1), _MOST)
    norms = cast("Array", jax.lax.map(norm, jnp.arange(sums.size), batch_size=together))
    return (norms, sums, weights), state


def means(found: Contributions) -> PerExample:
    """The loss of each example, and the norm of its part of the gradient of the batch."""
    norms, sums, weights = found
    # An example without weight has no part, also if NaN in another one makes its norm NaN.
    norms = jnp.where(weights != 0, quotient(norms, jnp.sum(weights)), 0)
    return PerExample(quotient(sums, weights), norms)


def per_example(loss: Loss, batch: Batch, parts: int) -> PerExample:
    """The losses and norms of a batch, with the model and the random numbers of the step."""

    def of_part(state: State, part: Batch, key: Array) -> tuple[State, Contributions]:
        def rows(params: Params) -> tuple[Array, tuple[Array, State]]:
            model = loss.bind(params, state, key)
            losses, weights, _ = loss.objective(model, part)
            sums, shares = weighted_rows(losses, weights)
            return sums, (shares, model.state)

        found, state = contributions(rows, loss.params)
        return state, found

    def add(state: State, part: tuple[Array, Batch]) -> tuple[State, Contributions]:
        return of_part(state, part[1], jax.random.fold_in(loss.key, part[0]))

    if parts == 1:
        return means(of_part(loss.state, batch, loss.key)[1])
    _, stacked, last = each_part(add, loss.state, batch, parts)
    found = _tree.map(jnp.ravel, stacked)
    if last is not None:
        found = _tree.map(lambda *both: jnp.concatenate(both), found, last)
    return means(found)


def contributions_of(losses: Callable[[Params], Array], params: Params) -> PerExample:
    """The losses and norms of a function of the params, with one or more losses an example."""

    def rows(params: Params) -> tuple[Array, tuple[Array, State]]:
        sums, weights = weighted_rows(losses(params), None)
        return sums, (weights, None)

    return means(contributions(rows, params)[0])
