"""`with as_on_an_accelerator():` refuses implicit transfers in both directions, on the CPU too.

The guard of JAX lets NumPy read an array on the CPU, because that copies nothing. Here each read of
an array of JAX raises, unless `jax.device_get` makes it or the guard is set to "allow".
"""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solstice import _batch
from solstice._engine import _placement

ARRAY: Any = type(jnp.zeros(()))
READS = (
    *("__array__", "__bool__", "__float__", "__int__", "__index__", "__complex__", "__format__"),
    *("item", "tolist", "tobytes"),
)


@contextmanager
def as_on_an_accelerator() -> Generator[None, None, None]:
    """Refuses implicit transfers, and puts batches on the device as for an accelerator."""
    guard: Any = _Guard()
    with pytest.MonkeyPatch.context() as patch, jax.transfer_guard("disallow"):
        patch.setattr(_placement, "READS_HOST", ())
        patch.setattr(_batch, "_is_on_the_host", _no)
        patch.setattr(jax, "device_get", guard.explicit(jax.device_get))
        for name in ("asarray", "array", "ascontiguousarray", "copyto"):
            patch.setattr(np, name, guard.implicit(getattr(np, name)))
        # On the CPU it does nothing, so JAX does not refuse it there.
        for name in (*READS, "copy_to_host_async"):
            patch.setattr(ARRAY, name, guard.implicit(getattr(ARRAY, name)))
        yield


class _Guard(threading.local):  # because callbacks may save in threads
    def __init__(self) -> None:
        self._is_explicit = False

    @property
    def _allows(self) -> Any:
        config: Any = jax.config
        return self._is_explicit or config.jax_transfer_guard_device_to_host == "allow"

    def explicit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before, self._is_explicit = self._is_explicit, True
            try:
                return function(*arguments)
            finally:
                self._is_explicit = before

        return call

    def implicit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if any(isinstance(x, ARRAY) for x in arguments) and not self._allows:
                raise AssertionError("Disallowed device-to-host transfer")
            return function(*arguments, **options)

        return call


def _no(array: object) -> bool:
    del array
    return False
