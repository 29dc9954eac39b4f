"""Poisson weights of examples, keyed by their index: the same for any batches and devices."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

STATES = (94, 94, 49, 13, 5, 1)
"""How many of 256 equally likely states have the weight 0, 1, 2, ...: a Poisson(1) variable to
0.01 in each probability. The mean and the variance are exactly 1, the skewness is 1.008."""

_EDGES = tuple(int(edge) for edge in np.cumsum(STATES)[:-1])
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_STREAM = 0x506F6973
"""The second word of the key, so that these bits are not those of `jax.random.key(seed)`."""


def poisson_weights(index: Array, replicates: int, seed: ArrayLike = 0) -> Array:
    """`poisson_weights(jnp.arange(n), 1000)`: Poisson(1) weights of examples, [replicates, n].

    A replicate of a data set has each example as often as its weight says. Each weight depends on
    the seed, the replicate and the index of the example alone: a weight is 8 of the 64 bits of
    Threefry-2x32 (Salmon et al. 2011) for the counter (index, replicate // 8).

    Args:
        index: the number of each example in the data set, integers of shape [n].
        replicates: number of replicates.
        seed: an integer, for other weights.
    """
    blocks = jnp.arange(-(-replicates // 8), dtype=jnp.uint32)
    shape = len(blocks), index.shape[0]
    counters = (
        jnp.broadcast_to(index.astype(jnp.uint32), shape),
        jnp.broadcast_to(blocks[:, None], shape),
    )
    # The barrier, because XLA would compute the words again for each of their eight weights.
    words = lax.optimization_barrier(threefry((jnp.uint32(seed), _STREAM), counters))
    words = jnp.stack(words, axis=1)
    shifts = np.arange(0, 32, 8, dtype=np.uint32)[None, None, :, None]
    states = (words[:, :, None, :] >> shifts) & np.uint32(0xFF)  # [blocks, 2, 4, n]
    weights = sum((states >= edge).astype(jnp.int32) for edge in map(np.uint32, _EDGES))
    return jnp.asarray(weights, jnp.float32).reshape(-1, shape[1])[:replicates]


def threefry(
    key: tuple[ArrayLike, ArrayLike], counters: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds, as in JAX, whose own is a loop that XLA does not fuse."""
    first, second = (jnp.asarray(word, jnp.uint32) for word in key)
    keys = first, second, first ^ second ^ np.uint32(_PARITY)
    one, other = counters[0] + keys[0], counters[1] + keys[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            one = one + other
            other = one ^ _rotated(other, rotation)
        one = one + keys[(block + 1) % 3]
        other = other + keys[(block + 2) % 3] + np.uint32(block + 1)
    return one, other


def _rotated(word: Array, by: int) -> Array:
    return (word << np.uint32(by)) | (word >> np.uint32(32 - by))
