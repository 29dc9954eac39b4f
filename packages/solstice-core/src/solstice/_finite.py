"""Non-finite numbers: the paths of arrays with NaN or infinity."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from solstice import _tree


def nonfinite(tree: object) -> list[str]:
    """The paths of arrays with NaN or infinity; reads back one boolean per array."""
    return [path for path, is_bad in _found(tree, _any_bad) if is_bad]


def nonfinite_rows(tree: object) -> list[tuple[str, int]]:
    """The paths and indices of rows with NaN or infinity; reads back one boolean per row."""
    return [
        (path, row)
        for path, rows in _found(tree, _any_bad_rows)
        for row, is_bad in enumerate(rows)
        if is_bad
    ]


def _found(tree: object, test: Callable[[list[Any]], jax.Array]) -> list[tuple[str, Any]]:
    """What a test of all floating-point arrays finds in each, by path."""
    floating = [(path, leaf) for path, leaf in _tree.leaves_by_path(tree) if _tree.is_inexact(leaf)]
    if not floating:
        return []
    # Explicitly, for `jax.transfer_guard`.
    there = [x if isinstance(x, jax.Array) else jax.device_put(x) for _, x in floating]
    bad = jax.device_get(test(there))
    return [(path, is_bad) for (path, _), is_bad in zip(floating, bad, strict=True)]


@jax.jit
def _any_bad(leaves: list[Any]) -> jax.Array:
    # One array, because each transfer to the host has a cost.
    return jnp.stack([~jnp.isfinite(leaf).all() for leaf in leaves])


@jax.jit
def _any_bad_rows(leaves: list[Any]) -> jax.Array:
    within = [tuple(range(1, leaf.ndim)) for leaf in leaves]
    return jnp.stack([~jnp.isfinite(x).all(axes) for x, axes in zip(leaves, within, strict=True)])
