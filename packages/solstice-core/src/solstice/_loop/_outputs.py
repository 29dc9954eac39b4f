"""Advice for outputs of a step that give no metrics."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def advice(lost: Mapping[str, Any]) -> str:
    """The advice for outputs that give no metrics, by path."""
    arrays = [path.split("/")[-1] for path, leaf in lost.items() if np.ndim(leaf)]
    if not arrays:
        return "Leave it out, or return a number"
    return (
        f"Return a scalar, such as `{arrays[0]}.mean()`, or a solstice.Metrics, such as "
        f"`solstice.metrics.Collect({arrays[0]}={arrays[0]})`; or keep it for callbacks with "
        f'`needs = ("outputs",)`, and filter this warning'
    )
