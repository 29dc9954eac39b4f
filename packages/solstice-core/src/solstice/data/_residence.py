"""Residence: whether the arrays of batches lie on the device, and the arrays there."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np

from solstice import _tree
from solstice._errors import DataError
from solstice._memory import device_memory, small_bytes
from solstice._types import Batch
from solstice.data._stores import Store


class Residence:
    """Where the arrays of `Batches` are for compiled calls.

    Args:
        asked: the user's `on_device`.
        why_on_host: the reason for batches from the host; "" if the arrays go to the device.

    Attributes:
        asked, why_on_host: as given.
    """

    def __init__(self, asked: bool | None, why_on_host: str) -> None:
        self.asked = asked
        self.why_on_host = why_on_host
        self._placed: tuple[object, Batch] | None = None

    def place(self, arrays: Batch, device: Any, from_host: str) -> Batch:
        """The arrays on a device, put there by the first call.

        Args:
            arrays: the arrays on the host, the same ones in each call.
            device: the device; JAX's default device if None.
            from_host: the line that feeds them from the host, for the message of an error.

        Raises:
            DataError: the arrays do not fit in the memory of the device.
        """
        key = device, jax.dtypes.canonicalize_dtype(float)  # because JAX's dtypes depend on x64
        if self._placed is None or self._placed[0] != key:
            self._placed = None  # frees the arrays on another device first
            self._placed = key, _put(arrays, device, from_host)
        return self._placed[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_placed": None}  # to pickle or copy nothing on the device


def why_on_host(
    asked: bool | None, leaves: Sequence[np.ndarray[Any, Any] | Store], wrong: str
) -> str:
    """The reason why arrays are not for the device, by `on_device`; "" if they are.

    Args:
        asked: the user's `on_device`.
        leaves: the arrays.
        wrong: a reason that the caller knows; "" if there is none.
    """
    if asked is False:
        return "on_device is not set"
    wrong = wrong or _why_never(leaves)
    if asked is None and any(isinstance(leaf, Store) for leaf in leaves):
        return "its rows are read from a file or a store when a batch needs them"
    nbytes, most = sum(leaf.nbytes for leaf in leaves), small_bytes()
    if asked is None and nbytes > most:
        return f"its {nbytes:,} bytes are more than {most:,}, which are small for this device"
    return wrong


def _why_never(leaves: Sequence[np.ndarray[Any, Any] | Store]) -> str:
    strangers = [leaf for leaf in leaves if not _is_of_jax(leaf.dtype)]
    if strangers:
        return f"one has the dtype {strangers[0].dtype}"
    length = len(leaves[0])
    return f"there are {length:,}" if length >= 2**31 else ""


def _is_of_jax(dtype: np.dtype[Any]) -> bool:
    try:
        jax.device_put(np.zeros((), dtype))
    except (TypeError, ValueError):  # text, objects, times, records and long doubles
        return False
    return True


def _put(arrays: Batch, device: Any, from_host: str) -> Batch:
    try:
        return cast("Any", jax).block_until_ready(jax.device_put(arrays, device))
    except Exception as error:  # the class of JAX's error depends on the device and its version
        nbytes = sum(leaf.nbytes for leaf in _tree.leaves(arrays))
        memory = device_memory(device)
        room = "" if memory is None else f", which has {memory:,}"
        raise DataError(
            f"the arrays, {nbytes:,} bytes, cannot be put on the device{room}: {error!r:.200}. "
            f"Feed them from the host: {from_host}"
        ) from error
