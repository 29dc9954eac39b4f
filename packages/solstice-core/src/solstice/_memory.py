"""Memory of arrays: aligned memory on the host, and the device's."""

from typing import Any, cast

import jax
import numpy as np

_ALIGNMENT = 64
"""In bytes. JAX on the CPU reads memory of this alignment without a copy."""

_SHARE = 8
"""Arrays are small if they take at most one part in 8 of the device's memory."""

_SMALL = 2**26
"""Bytes of small arrays on a device that does not report its memory, such as the CPU."""


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """`aligned((32, 8), np.float32)`: uninitialised memory that JAX on the CPU reads in place."""
    dtype = np.dtype(dtype)
    length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    # NumPy does not align to 64 bytes, so this is an aligned part of a larger array.
    memory = np.empty(length + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + length].view(dtype).reshape(shape)


def frozen_copy(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A read-only copy that JAX on the CPU reads in place."""
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    copy.flags.writeable = False
    return copy


def default_device() -> Any:
    """The device on which JAX puts arrays unless another is named."""
    return next(iter(jax.device_put(np.uint32(0)).devices()))


def device_memory(device: Any = None) -> int | None:
    """The bytes that JAX can use on a device, JAX's default one if None; None if unknown."""
    if isinstance(device, jax.sharding.Sharding):  # each device has a copy
        [device, *_] = cast("set[Any]", device.addressable_devices)
    one: Any = device or default_device()
    stats: dict[str, int] | None = one.memory_stats()
    return None if stats is None else stats.get("bytes_limit")


def small_bytes(device: Any = None) -> int:
    """The most bytes of arrays that are small beside the memory of the device."""
    memory = device_memory(device)
    return _SMALL if memory is None else memory // _SHARE
