"""Ctrl-C, held for the moment in which the newest state changes hands.

A compiled call takes the old arrays for good and gives the new ones. An interrupt between the call
and the assignment would lose both.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class _State:
    held = False
    pending = False


_state = _State()


@contextmanager
def interrupts_held() -> Generator[None, None, None]:
    """Within, Ctrl-C waits; it is raised at the end. Only inside `interrupts_guarded`."""
    _state.held = True
    try:
        yield
    finally:
        _state.held = False
        if _state.pending:
            _state.pending = False
            raise KeyboardInterrupt


@contextmanager
def interrupts_guarded() -> Generator[None, None, None]:
    """Makes Ctrl-C heed `interrupts_held`, unless the user has a handler of their own."""
    usual = signal.default_int_handler
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not usual
    ):
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if _state.held:
            _state.pending = True
        else:
            usual(number, frame)

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
