"""Conversion of the leaves of a batch, of any library, to arrays."""

from typing import Any, cast

import jax
import numpy as np

from solstice import _tree
from solstice._arguments import is_deleted
from solstice._batch import unmasked
from solstice._errors import DataError
from solstice._types import Batch

_DELETED = (
    "an array of shape {shape} in a batch of {name} has been deleted: it was donated to a compiled "
    "function, as by `jax.jit(..., donate_argnums=0)`. Pass the result of that function instead"
)

_ALREADY = {np.ndarray}
_READY: Any = np.ndarray | jax.Array | str | bytes


def to_numpy(batch: Batch, name: str = "batch") -> Batch:
    """The batch with tensors of any library as NumPy arrays; JAX arrays and text stay unchanged."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, _READY):
            if is_deleted(leaf):
                raise DataError(_DELETED.format(name=name, shape=list(leaf.shape)))
            if isinstance(leaf, np.ma.MaskedArray):
                return unmasked(cast("Any", leaf), name)
            return leaf
        try:
            return np.asarray(leaf)
        except Exception as error:
            kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            raise DataError(f"a {kind} in a batch of {name} is not an array: {error}") from error

    flat = isinstance(batch, tuple)  # the usual case, without the cost of `tree.leaves`
    leaves = cast("tuple[Any, ...]", batch) if flat else _tree.leaves(batch)
    if {*map(type, leaves)} == _ALREADY:
        return batch  # the usual case, without the cost of a new tree
    return jax.tree.map(convert, batch)
