"""PRNG keys: from a seed, and checks of keys that users pass."""

from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import check_alive, shown
from solstice.experiments._checks import is_of, shape_of


def key_of(seed: object) -> Array:
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


def one_key(name: str, key: object) -> Array:
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


def _is_key(key: object) -> TypeGuard[Array]:
    is_legacy = is_of(key, np.uint32) and len(shape_of(key)) == 1 and shape_of(key) != (0,)
    is_typed = is_of(key, jax.dtypes.prng_key) and shape_of(key) == ()
    return isinstance(key, jax.Array | np.ndarray) and (is_legacy or is_typed)


def _is_seed(seed: object) -> TypeGuard[ArrayLike]:
    if isinstance(seed, int):
        # `jax.random.key` takes no more bits.
        return not isinstance(seed, bool) and -(2**63) <= seed < 2**63
    kinds = jax.Array | np.ndarray | np.generic
    return isinstance(seed, kinds) and is_of(seed, jnp.integer) and shape_of(seed) == ()
