"""`gather`: arrays of several processes as NumPy arrays."""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from solstice import _tree
from solstice._agreement import agreement

T = TypeVar("T")


def gather(tree: T) -> T:
    """`arrays = solstice.distributed.gather(record.experiment.params)`: whole arrays, everywhere.

    All processes must call it with the same tree, so not in a callback of the first process alone.
    Each array must fit into the memory of one device.

    Args:
        tree: any pytree. JAX's arrays become NumPy arrays, those of several processes too; typed
            PRNG keys become keys on a device of this process; other leaves stay.

    Raises:
        PeerMissing: a process has not called it in time.
        PeerMismatch: a process is at another place.
    """
    leaves, structure = _tree.flatten(tree)
    spread = [x for x in leaves if isinstance(x, jax.Array) and not _is_readable(x)]
    together = agreement()
    if spread and together is not None:  # else a process that does not call it would hang all
        together.barrier(f"gather of {len(spread)} arrays")
    return _tree.unflatten(
        structure, [_whole(x) if isinstance(x, jax.Array) else x for x in leaves]
    )


def _is_readable(x: jax.Array) -> bool:
    """Whether this process has all of an array."""
    return x.is_fully_addressable or x.is_fully_replicated


def _whole(x: jax.Array) -> Any:
    if _tree.is_key(x):
        return _tree.as_key(_whole(jax.random.key_data(x)), like=x)
    if _is_readable(x):
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)
