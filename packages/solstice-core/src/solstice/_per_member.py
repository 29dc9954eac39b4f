"""PerMember: an array whose axis 0 is the members of a population."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from solstice._better import Direction, better
from solstice._types import AnyArray


class PerMember(np.ndarray):
    """`isinstance(metrics["loss"], PerMember)`: a metric with a value for each member on axis 0.

    `Mapped` makes it. It is an array of NumPy in every other way, and what is computed from it is
    a plain array, because that need not have the members on axis 0.
    """

    def __array_wrap__(
        self, array: np.ndarray[Any, Any], context: object = None, return_scalar: bool = False
    ) -> Any:
        return np.asarray(array)[()]

    def __getitem__(self, index: Any, /) -> Any:
        return self.view(np.ndarray)[index]


def per_member(values: object) -> PerMember:
    """An array, with the members on axis 0, as a metric."""
    return np.asarray(values).view(PerMember)


def placed(ids: AnyArray | None, values: np.ndarray[Any, Any], size: int) -> PerMember:
    """The values of some members at the places of their numbers; NaN for removed members."""
    if ids is None:
        return per_member(values)
    found = np.full((size, *values.shape[1:]), np.nan, values.dtype)
    found[ids] = values
    return per_member(found)


def is_vector(value: object) -> TypeGuard[PerMember]:
    """Whether a metric is a number for each member."""
    return isinstance(value, PerMember) and value.ndim == 1 and value.dtype.kind in "biuf"


def best_of(values: PerMember, direction: Direction) -> tuple[int | None, float]:
    """The member with the best value, and the value; None and NaN if all are NaN."""
    known = np.flatnonzero(~np.isnan(values))
    if not known.size:
        return None, math.nan
    there = np.asarray(values)[known]
    place = int(known[there.argmin() if direction == "min" else there.argmax()])
    return place, float(values[place])


def summary(name: str, values: PerMember) -> dict[str, float]:
    """The best value, the median, the mean and the standard deviation, without NaN."""
    known = np.asarray(values)[~np.isnan(values)]
    if not known.size:
        return dict.fromkeys(("best", "median", "mean", "std"), math.nan)
    with np.errstate(invalid="ignore"):  # the deviation of infinite values is NaN
        found = best_of(values, better(name))[1], np.median(known), known.mean(), known.std()
    return dict(zip(("best", "median", "mean", "std"), map(float, found), strict=True))


def as_numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics for tools of numbers: "loss/best" and "loss/median" in place of those of members."""
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        if is_vector(value):
            both = summary(name, value)
            found |= {f"{name}/best": both["best"], f"{name}/median": both["median"]}
        else:
            found[name] = value
    return found


def rows_of_members(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row of each member, with its number at "member"; a row without members unchanged."""
    lengths = [len(value) for value in row.values() if isinstance(value, PerMember)]
    count = max(lengths, default=0)
    return [of_member(row, at) | {"member": at} for at in range(count)] or [dict(row)]


def of_member(values: Mapping[str, Any], member: int) -> dict[str, Any]:
    """Metrics of one member: its numbers in place of those of all."""
    return {name: _at(value, member) for name, value in values.items()}


def _at(value: object, member: int) -> object:
    if not isinstance(value, PerMember):
        return value
    alone = value[member]
    return alone.item() if np.ndim(alone) == 0 and hasattr(alone, "item") else alone
