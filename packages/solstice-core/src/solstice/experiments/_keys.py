"""PRNG keys: from a seed, and checks of keys that users pass."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice._arguments import check_alive, shown


def key_of(seed: Any) -> Array:
    """The PRNG key for a seed: an integer, or a key (typed or legacy), which is returned.

    Raises:
        TypeError: it is neither.
    """
    check_alive("seed", seed)
    if _is_key(seed):
        return seed
    if not _is_seed(seed):
        raise TypeError(
            f"seed must be an integer of up to 64 bits, as in `seed=0`, or one key, as in "
            f"`seed=jax.random.key(0)`; it is {shown(seed)}"
        )
    return jax.random.key(seed)


def one_key(name: str, key: Any) -> Array:
    """`one_key("key", key)`: the key, typed or legacy, after a check.

    Raises:
        TypeError: it is not a single key.
    """
    check_alive(name, key)
    if not _is_key(key):
        raise TypeError(
            f"{name} must be one PRNG key, as in `{name}=jax.random.key(0)`; it is {shown(key)}"
        )
    return key


def _is_key(key: Any) -> bool:
    if not isinstance(key, jax.Array | np.ndarray):
        return False
    given = cast("Any", key)
    if jnp.issubdtype(given.dtype, jax.dtypes.prng_key):
        return given.shape == ()
    return given.ndim == 1 and given.size > 0 and given.dtype == np.uint32


def _is_seed(seed: Any) -> bool:
    if isinstance(seed, int):
        return not isinstance(seed, bool) and -(2**63) <= seed < 2**63
    kinds = jax.Array | np.ndarray | np.generic
    return isinstance(seed, kinds) and not seed.shape and jnp.issubdtype(seed.dtype, jnp.integer)
