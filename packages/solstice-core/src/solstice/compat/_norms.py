"""Norms of params, gradients and updates by subtree."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from solstice import _tree
from solstice._arguments import whole
from solstice.compat._protocols import Around, Optimizer, OptState, Params
from solstice.compat._registry import adapt_argument


class Norms(eqx.Module):
    """The norms of the newest step, in the optimiser state of `track_norms`.

    Attributes:
        gradient: the Euclidean norm of the gradient, a float32 scalar, by the name of a subtree of
            the params; "" is the total.
        update: the same for the change of the params in the step.
    """

    gradient: dict[str, Array]
    update: dict[str, Array]


def track_norms(optimizer: object, *, depth: int = 1) -> Optimizer:
    """`optimizer = solstice.compat.track_norms(optax.adam(3e-4))`: store norms for `NormMonitor`.

    Norms are computed in each step, and read back only on request. The gradient is that before
    clipping in the optimiser. The state is a pair: the state of `optimizer`, and `Norms`.

    Args:
        optimizer: an `Optimizer`, or an optimiser with an adapter.
        depth: number of levels of subtrees with their own norm; 0 for the total only.

    Raises:
        TypeError, AdapterError: there is no adapter for `optimizer`.
        ValueError: `depth` is negative.
    """
    return _Tracking(
        adapt_argument("optimizer", "optimizer", optimizer), whole("depth", depth, 0, "levels")
    )


def norms_of(tree: Params, depth: int = 1) -> dict[str, Array]:
    """`norms_of(params)["encoder"]`: Euclidean norms by subtree, float32; "" is the total.

    Args:
        tree: a tree of arrays; only floating-point arrays count.
        depth: number of levels of subtrees with their own norm. Top levels with a single entry are
            skipped, so depth 1 distinguishes the layers in Flax's `{"params": {...}}`.
    """
    depth = whole("depth", depth, 0, "levels")
    leaves = _tree.leaves_by_slashes(tree).items()
    arrays = {path: jnp.asarray(leaf) for path, leaf in leaves if _tree.is_inexact(leaf)}
    squares = {tuple(path.split("/")): _sum_of_squares(leaf) for path, leaf in arrays.items()}
    levels = zip(*(path[:-1] for path in squares), strict=False)
    start = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    sums: dict[str, Array] = {"": jnp.zeros((), jnp.float32)}
    for path, square in squares.items():
        name = "/".join(path[start : start + depth])
        for part in {"", name}:  # a set: at depth 0 both are the total
            sums[part] = sums.get(part, 0.0) + square
    return {name: jnp.sqrt(total) for name, total in sums.items()}


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Tracking(Around):
    """An optimiser that stores the norms of its newest step; its state is (inner state, Norms)."""

    depth: int

    def init(self, params: Params, /) -> OptState:
        """`opt_state = optimizer.init(params)`."""
        zeros = {name: jnp.zeros((), jnp.float32) for name in norms_of(params, self.depth)}
        return self.optimizer.init(params), Norms(zeros, dict(zeros))

    def step(
        self, grads: Params, state: OptState, params: Params, /, **extra: Any
    ) -> tuple[Params, OptState]:
        """`params, opt_state = optimizer.step(grads, opt_state, params)`."""
        new, inner = self.optimizer.step(grads, state[0], params, **extra)

        def difference(after: Array, before: Array) -> Array:
            return _tree.wide(after) - _tree.wide(before)

        update = norms_of(_tree.map(difference, new, params), self.depth)
        return new, (inner, Norms(norms_of(grads, self.depth), update))


def _sum_of_squares_of(leaf: Array) -> Array:
    return jnp.sum(jnp.square(jnp.abs(leaf).astype(jnp.float32)))  # params may be complex


# Compiled, because each operation alone makes a copy of the array.
_sum_of_squares: Callable[[Array], Array] = jax.jit(_sum_of_squares_of)
