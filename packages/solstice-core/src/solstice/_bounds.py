"""Bounds: the names of the interval and the standard error of a metric."""

from collections.abc import Container

ENDS = ("low", "high", "se")
"""The ends of the names of the bounds of a value and of its standard error."""


def is_bound(name: str, names: Container[str]) -> bool:
    """Whether a metric is a bound of another of these, as "accuracy_low" is of "accuracy"."""
    metric, _, end = name.rpartition("_")
    return end in ENDS and metric in names and all(f"{metric}_{end}" in names for end in ENDS)
