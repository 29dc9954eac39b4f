"""What of a batch a step sees."""

from typing import Any

import jax
import numpy as np

from solstice._types import Batch


def arrays_of(batch: Batch) -> Batch:
    """The batch as a step sees it: text and objects, which no compiled code takes, are None."""

    def keep(leaf: Any) -> Any:
        return leaf if is_numeric(leaf) else None

    return jax.tree.map(keep, batch)


def is_numeric(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) or (
        isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "OSUmM"
    )
