"""Direction of a metric: whether smaller or larger values are better, by its name."""

import re
from typing import Literal, TypeAlias

from solstice._arguments import choice

Direction: TypeAlias = Literal["min", "max"]

_LESS = ("loss", "error", "perplexity", "divergence", "distance", "cost", "regret", "rmse", "rmsle")
_LESS_AS_WORDS = {"mse", "mae", "mape", "nll", "bits", "kl", "wer", "cer", "fid", "ece", "brier"}
"""Short names: compared with whole words, because longer words contain them by chance."""


def better(name: str, mode: Direction | None = None) -> Direction:
    """`better("val/loss") == "min"`: whether smaller or larger values of a metric are better.

    Args:
        name: the metric, with or without its mode.
        mode: the user's choice, "min" or "max". If None, smaller is better for a loss, an error, a
            perplexity and the like, and larger for all others.

    Raises:
        ValueError: `mode` is something else.
    """
    if mode is not None:
        return choice("mode", mode, ("min", "max"))
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    is_less = words & _LESS_AS_WORDS or any(word in name.lower() for word in _LESS)
    return "min" if is_less else "max"
