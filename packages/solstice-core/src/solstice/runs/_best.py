"""Bests: the newest and the best value of each scalar metric of a history."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from solstice._better import Direction, better
from solstice._history_rows import is_numeric, metrics_in
from solstice._per_member import best_of, is_vector


class Bests:
    """`bests.add(history.rows)`: reads the new rows of a growing list.

    Attributes:
        found: by name, such as "val/accuracy", the values "newest" and "best", and "best_epoch".
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._seen = 0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Reads the rows that were added since the previous call."""
        new = rows[self._seen :]
        self._seen += len(new)
        for row in new:
            if row["span"] == "epoch":
                self._add_row(row)

    def _add_row(self, row: Mapping[str, Any]) -> None:
        for metric, value in metrics_in(row).items():
            if is_numeric(value):
                name = f"{row['mode']}/{metric}"
                direction = better(name)
                number = best_of(value, direction)[1] if is_vector(value) else float(value)
                self._add(name, number, row["epoch"], direction)

    def _add(self, name: str, value: float, epoch: int, direction: Direction) -> None:
        at = self.found.setdefault(name, {"best": math.nan, "best_epoch": epoch})
        at["newest"] = value
        best = at["best"]
        if math.isnan(best) or (value < best if direction == "min" else value > best):
            at["best"], at["best_epoch"] = value, epoch
