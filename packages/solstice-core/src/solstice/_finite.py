"""Non-finite numbers: the paths of arrays with NaN or infinity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solstice import _tree


def nonfinite(tree: Any) -> list[str]:
    """The paths of arrays with NaN or infinity; reads back one boolean per array."""
    floating = [(path, leaf) for path, leaf in _tree.leaves_by_path(tree) if _is_floating(leaf)]
    if not floating:
        return []
    bad: Any = jax.device_get(_any_bad([leaf for _, leaf in floating]))
    return [path for (path, _), is_bad in zip(floating, bad, strict=True) if is_bad]


def _is_floating(leaf: Any) -> bool:
    kinds: Any = jax.Array | np.ndarray | np.generic
    return isinstance(leaf, kinds) and jnp.issubdtype(leaf.dtype, jnp.inexact)


@jax.jit
def _any_bad(leaves: list[Any]) -> Any:
    return jnp.stack([~jnp.isfinite(leaf).all() for leaf in leaves])
