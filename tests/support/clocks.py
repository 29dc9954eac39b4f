"""A clock that tests move, in place of the `time` module of a module under test."""

from typing import Any


class Clock:
    """`monkeypatch.setattr(module, "time", clock)`: it stands still until `clock.now` is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = time = monotonic


def stopped(monkeypatch: Any, *modules: Any) -> Clock:
    """One clock for several modules."""
    clock = Clock()
    for module in modules:
        monkeypatch.setattr(module, "time", clock)
    return clock
