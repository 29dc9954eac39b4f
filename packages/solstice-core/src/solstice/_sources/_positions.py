"""Position of a data set: the state of its iterator, and fingerprints of batches."""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np

from solstice import _tree
from solstice._batch import arrays_of
from solstice._sources._libraries import is_keras, is_random_access
from solstice._types import Batch
from solstice.data import Batches, BatchIterator

_SAMPLE = 2**15
"""In bytes: larger arrays are sampled at both ends."""


@dataclass(frozen=True)
class Memory:
    """The state of an iterator.

    Attributes:
        owner: an object with `get_state` and `set_state`, or `state_dict` and `load_state_dict`.
        outlives_epochs: whether the next epoch continues the same iterator.
    """

    owner: Any
    outlives_epochs: bool

    @property
    def kind(self) -> str:
        """The class of the iterator, because a state fits only its own class."""
        return type(self.owner).__qualname__  # a module may be __main__ in one process alone

    def get(self) -> Any:
        """A copy of the state, because many iterators return an object that they change later."""
        owner = self.owner
        state = owner.get_state() if hasattr(owner, "get_state") else owner.state_dict()
        return copy.deepcopy(state)

    def set(self, state: object) -> None:
        """Restores a state."""
        owner = self.owner
        if hasattr(owner, "set_state"):
            owner.set_state(state)
        else:
            owner.load_state_dict(state)


def is_seekable(data: object) -> bool:
    """Whether `data[17]` is batch 17 of `len(data)`."""
    if isinstance(data, Batches | Sequence) or is_random_access(data) or is_keras(data):
        return True
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return indexed and not hasattr(data, "__iter__") and not isinstance(data, Mapping | type)


def opened(data: Any, start: int = 0) -> tuple[Iterator[Batch], Memory | None]:
    """The batches of a data set from number `start` on, and the state of their iterator.

    Args:
        data: the data set of an epoch.
        start: the first batch; not 0 only for a seekable data set.
    """
    if start:
        if isinstance(data, Batches):
            batches = iter(data)
            batches.load_state_dict({**batches.state_dict(), "batch": start})
            return batches, None
        return (data[index] for index in range(start, len(data))), None
    if not hasattr(data, "__iter__") or is_keras(data):  # Keras may iterate for ever
        return (data[index] for index in range(len(data))), None
    iterator = cast("Iterator[Batch]", iter(data))
    stateful = hasattr(iterator, "set_state") or hasattr(iterator, "load_state_dict")
    if not stateful or isinstance(iterator, BatchIterator):  # found by index, without a state
        return iterator, None
    return iterator, Memory(iterator, outlives_epochs=iterator is data)


def fingerprint(batch: Batch) -> str:
    """A checksum of a batch, which samples large arrays at both ends."""
    digest = hashlib.sha256()
    for path, leaf in _tree.leaves_by_path(arrays_of(batch)):
        array = np.asarray(jax.device_get(leaf))
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))  # as a step sees it
        digest.update(f"{path} {array.dtype} {array.shape} ".encode())
        flat = array.reshape(-1)
        if array.nbytes > 2 * _SAMPLE:
            count = _SAMPLE // array.itemsize
            flat = np.concatenate([flat[:count], flat[-count:]])
        digest.update(flat.tobytes())
    return digest.hexdigest()
