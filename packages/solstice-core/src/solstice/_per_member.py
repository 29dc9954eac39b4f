"""PerMember: an array whose axis 0 is the members of a population."""

from typing import Any

import numpy as np


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


def is_vector(value: object) -> bool:
    """Whether a metric is a number for each member."""
    return isinstance(value, PerMember) and value.ndim == 1 and value.dtype.kind in "biuf"
