"""The members of a population by their scores, on the host."""

from typing import Any

import jax
import numpy as np

from solstice import _tree
from solstice._monitor import Monitor


def on_host(tree: Any) -> Any:
    """The arrays of a tree as NumPy arrays. All processes call it, if they are several."""
    arrays = [x for x in _tree.leaves(tree) if isinstance(x, jax.Array)]
    if all(x.is_fully_addressable or x.is_fully_replicated for x in arrays):
        return jax.device_get(tree)
    from solstice.distributed import gather  # only several processes need it

    return gather(tree)


def scores_of(values: Any, monitor: Monitor) -> np.ndarray[Any, Any]:
    """The values of a metric so that larger is better; NaN stays."""
    values = np.asarray(values, np.float32)
    return -values if monitor.mode == "min" else values


def best_first(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rows of the members from the best to the worst.

    NaN is the worst. Of equal members, the one with the smaller number is the better.
    """
    finite_first = np.where(np.isnan(scores), np.inf, -scores)
    return np.lexsort((np.arange(len(scores)), finite_first, np.isnan(scores)))
