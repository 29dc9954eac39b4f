"""Successive halving: the worst members are removed after every few epochs."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from solstice._arguments import whole
from solstice.population._ranking import best_first


@dataclass(frozen=True)
class Halving:
    """The rule `halving=(every, keep)`.

    Attributes:
        every: epochs from one removal to the next.
        keep: the part of the members that stays, or their number.
    """

    every: int
    keep: int | float

    @staticmethod
    def of(given: Any, size: int) -> "Halving | None":
        """The checked rule; None for None.

        Raises:
            ValueError: it has another form, or would keep all members.
        """
        if given is None:
            return None
        if not isinstance(given, tuple | list) or len(cast("list[Any]", given)) != 2:
            raise ValueError(
                f"halving must be (every, keep), such as `halving=(3, 0.5)`: after every third "
                f"epoch the better half stays; it is {given!r:.60}"
            )
        every, keep = cast("list[Any]", given)
        every = whole("halving=(every, ...)", every, 1, "epochs")
        return Halving(every, _keep(keep, size))

    def rows(self, scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The rows of the members that stay, in their order."""
        count = self.keep if isinstance(self.keep, int) else int(len(scores) * self.keep + 1e-9)
        return np.sort(best_first(scores)[: max(count, 1)])


def _keep(keep: Any, size: int) -> int | float:
    number: Any = getattr(keep, "item", lambda: keep)()  # of a number of NumPy
    if type(number) is int and 1 <= number < max(size, 2):
        return number
    if type(number) is float and 0 < number < 1:
        return number
    raise ValueError(
        f"halving=(every, keep): keep must be a part of the members between 0 and 1, such as 0.5, "
        f"or a number of members from 1 to {max(size - 1, 1)}; it is {keep!r:.60}"
    )
