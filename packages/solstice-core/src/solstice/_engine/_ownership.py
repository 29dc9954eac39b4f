"""Ownership: which arrays a call may donate, because nobody else can reach them."""

import sys
from collections import Counter
from functools import lru_cache
from typing import Any, cast

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solstice import _tree
from solstice._experiment import Experiment

_SMALL_BYTES = 2**22
"""The bytes of a state that is always copied: that takes less time than to find who holds it."""


class Ownership:
    """The owners of the arrays of a stepper: the stepper, callbacks, and the caller of `fit`.

    Donation destroys an array for all owners, so arrays that others hold are copied first.

    Args:
        initial: the initial state of the stepper, or the list of its arrays.
        given: the Experiment of the caller, if the run gives it up (`donate=True`); else None.

    Attributes:
        times: how often arrays were copied because callbacks kept them.
        at_start: the bytes of the given Experiment that were copied because others hold them.
    """

    def __init__(self, initial: object, given: Experiment | None = None) -> None:
        # Held until `settle`, because its references to the arrays are counted.
        self._given = given
        self._initial = None if given is None else initial
        self._gives_up = given is not None
        self._is_shared = self._is_first = True  # because the caller owns the initial arrays
        self.times = self.at_start = 0

    @property
    def gives_up(self) -> bool:
        """Whether the run destroys the caller's Experiment."""
        return self._gives_up

    def share(self) -> None:
        """Notes that somebody receives the arrays."""
        self._is_shared = True

    def restart(self) -> None:
        """Notes that the stepper has other arrays now, and not those of the caller."""
        self._is_shared, self._is_first = True, False

    def unshare(self, arrays: list[Array]) -> None:
        """Replaces the arrays that others hold by copies."""
        if not self._is_shared:
            return
        is_first, self._is_first, self._is_shared = self._is_first, False, False
        is_callers = is_first and self._given is None
        if is_callers or sum(x.nbytes for x in arrays) <= _SMALL_BYTES:
            _tree.copy_in_place(arrays, range(len(arrays)))
            return
        held = held_by_others(arrays, self._given)
        if is_first:
            self.at_start = sum(arrays[index].nbytes for index in held)
        else:
            self.times += bool(held)
        _tree.copy_in_place(arrays, held)

    def settle(self, newest: object) -> None:
        """Deletes the arrays of the caller's Experiment, once the stepper has a newer state.

        Those that others hold too stay.
        """
        given = self._given
        if given is None or newest is self._initial:
            return
        self._given = self._initial = None
        arrays = [x for x in _tree.leaves(given) if isinstance(x, Array) and not x.is_deleted()]
        held = set(held_by_others(arrays, given))
        for index, array in enumerate(arrays):
            if index not in held:
                array.delete()


def held_by_others(arrays: list[Array], given: Experiment | None = None) -> list[int]:
    """The indices of arrays that something can reach, apart from this list and `given`.

    That is another reference to the array, or another array on its memory, such as the result of
    `jax.device_put(x, device)`. JAX itself refuses to donate memory that NumPy or DLPack views.
    """
    # In Experiments, each leaf has one reference for each place where it is.
    spare = Counter(map(id, _tree.leaves(given)))
    here = Counter(map(id, arrays))
    shared = _on_shared_memory(arrays)
    found: list[int] = []
    for index in range(len(arrays)):
        one = id(arrays[index])
        others = _other_references(arrays, index) - (here[one] - 1) - spare[one]
        # An array in two places has to become two arrays.
        if others > 0 or here[one] > 1 or index in shared:
            found.append(index)
    return found


def _other_references(arrays: list[Array], index: int) -> int:
    """The references to an array, without one of the list."""
    here, within = _unheld(is_spread=len(arrays[index].addressable_shards) > 1)
    others = sys.getrefcount(arrays[index]) - here
    return others + max(_references_within(arrays[index]) - within, 0)


@lru_cache(maxsize=2)
def _unheld(*, is_spread: bool) -> tuple[int, int]:
    """The references to an array that only a list holds, and to an array within it."""
    arrays = [jax.device_put(np.zeros(1, np.float32), _on_two() if is_spread else None)]
    return sys.getrefcount(arrays[0]), _references_within(arrays[0])


def _on_two() -> NamedSharding:
    devices = cast("list[Any]", jax.local_devices()[:2])
    return NamedSharding(Mesh(np.array(devices), ("copies",)), PartitionSpec())


def _references_within(array: Array) -> int:
    """Most arrays hold others on their memory, one for each device, and hand these out."""
    inner = _within(array)
    return max((sys.getrefcount(inner[index]) for index in range(len(inner))), default=0)


def _within(array: Array) -> list[Array]:
    """The arrays on its memory that an array holds."""
    if _tree.is_key(array):
        return []
    return [shard.data for shard in array.addressable_shards if shard.data is not array]


def _on_shared_memory(arrays: list[Array]) -> set[int]:
    """The indices of arrays that share their memory, or whose memory is unknown."""
    places = [_addresses(x) for x in arrays]
    own = {id(inner) for x in arrays for inner in _within(x)}
    # A typed key is not among the live arrays, but the array in it is.
    live = [x for platform in _platforms(arrays) for x in _live(platform)]
    count = Counter(at for x in live if id(x) not in own for at in _addresses(x))
    return {i for i, at in enumerate(places) if not at or any(count[one] > 1 for one in at)}


def _live(platform: str) -> list[Array]:
    return cast("Any", jax).live_arrays(platform)


def _platforms(arrays: list[Array]) -> set[str]:
    return {device.platform for x in arrays for device in x.devices()}


def _addresses(array: Array) -> list[int]:
    """Where its memory is on each device of this process; none of a typed key."""
    if array.is_deleted() or _tree.is_key(array):
        return []
    shards = [array] if len(array.devices()) == 1 else [x.data for x in array.addressable_shards]
    try:
        return [cast("Any", x).unsafe_buffer_pointer() for x in shards]
    except Exception:  # some devices do not say where their memory is
        return []
