"""Digests: 32-bit digests of the batch, the outputs and the state of steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

Table: TypeAlias = np.ndarray[Any, np.dtype[np.uint32]]
"""A row of digests for each step, and a column for each array."""


@dataclass(frozen=True)
class Digests:
    """`record.digests.at(record.step)["state/params/w"]`: a number for the bits of each array.

    ```python
    class PrintDigests(solstice.Callback):
        every = 100
        needs = ("digests",)
        modes = ("train",)

        def on_step_end(self, record):
            print(record.step, record.digests.at(record.step))
    ```

    Two arrays with one different bit have different digests, except one pair in about 4 billion.
    They are computed within the compiled step, on any number of devices alike, and read from the
    device when you first read them, for all steps of a call at once.

    Attributes:
        steps: the steps with a digest of the batch and the outputs.
        names: the names of these arrays, such as "batch/0" and "outputs/loss".
        state_steps: the steps after which the state has digests: multiples of the `every` of the
            callbacks with `needs = ("digests",)`.
        state_names: the names of the arrays of the state, such as "state/params/w".
        state_types: their types, such as "float32[784,64]" and "key<fry>[]".
    """

    steps: Sequence[int]
    names: tuple[str, ...]
    state_steps: Sequence[int]
    state_names: tuple[str, ...]
    state_types: tuple[str, ...]
    read: Callable[[], tuple[Table, Table]] = field(repr=False)

    @cached_property
    def _tables(self) -> tuple[Table, Table]:
        return self.read()

    @property
    def rows(self) -> Table:
        """The digests of batch and outputs: a row for each of `steps`."""
        return self._tables[0]

    @property
    def state_rows(self) -> Table:
        """The digests of the state: a row for each of `state_steps`."""
        return self._tables[1]

    def at(self, step: int) -> dict[str, int]:
        """`record.digests.at(100)`: the digests of a step by name; none if it is not here."""
        found: dict[str, int] = {}
        for steps, names, rows in (
            (self.steps, self.names, self.rows),
            (self.state_steps, self.state_names, self.state_rows),
        ):
            if step in steps:
                found |= zip(names, map(int, rows[list(steps).index(step)]), strict=True)
        return found
