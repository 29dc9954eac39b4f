"""Kept: fields of records that are made when they are read, or before the state changes."""

import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from solstice._engine import Reading
from solstice._record import Once, Times

_READINGS = 2
"""Those of a training epoch and its validation."""


class Kept:
    """The fields that callbacks may have kept, of one run and its validations.

    A field costs nothing if nobody reads it. If a callback keeps its record, the field is made
    before the state or the metrics so far change.
    """

    def __init__(self) -> None:
        self._fields: list[weakref.ref[Once]] = []
        self._readings = deque[tuple[Reading, Times]]()

    def field(self, make: Callable[[], Any]) -> Once:
        """A field that is made at most once."""
        new = Once(make)
        self._fields.append(weakref.ref(new))
        return new

    def reading(self, new: Reading, times: Times) -> None:
        """Metrics that the device may still compute; those before the newest are fetched.

        So the host prepares the next steps meanwhile, and few metrics stay on the device.
        """
        self._readings.append((new, times))
        self.fetch(_READINGS)

    def fetch(self, most: int = 0) -> None:
        """Waits for metrics until the device computes `most` of them or fewer."""
        while len(self._readings) > most:
            reading, times = self._readings.popleft()
            reading.fetch(times)

    def settle(self) -> None:
        """Makes the fields of the records that somebody has kept, because the state changes."""
        if not self._fields:
            return
        fields, self._fields = self._fields, []
        for there in fields:
            kept = there()
            if kept is not None:
                with suppress(Exception):  # of a lost state; raised when somebody reads the field
                    kept.make()
