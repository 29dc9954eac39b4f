"""Non-finite numbers: the paths of arrays with NaN or infinity."""

from typing import Any

import jax
import jax.numpy as jnp

from solstice import _tree


def nonfinite(tree: object) -> list[str]:
    """The paths of arrays with NaN or infinity; reads back one boolean per array."""
    floating = [(path, leaf) for path, leaf in _tree.leaves_by_path(tree) if _tree.is_inexact(leaf)]
    if not floating:
        return []
    # Explicitly, for `jax.transfer_guard`.
    there = [x if isinstance(x, jax.Array) else jax.device_put(x) for _, x in floating]
    bad = jax.device_get(_any_bad(there))
    return [path for (path, _), is_bad in zip(floating, bad, strict=True) if is_bad]


@jax.jit
def _any_bad(leaves: list[Any]) -> jax.Array:
    # One array, because each transfer to the host has a cost.
    return jnp.stack([~jnp.isfinite(leaf).all() for leaf in leaves])
