"""The members of a population by their scores."""

from typing import Any

import numpy as np

from solstice._monitor import Monitor


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
