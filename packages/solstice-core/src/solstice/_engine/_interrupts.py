"""Ctrl-C and SIGTERM: never lost between two states, and heeded where a run can be saved.

A compiled call takes the old arrays for good and gives the new ones. An interrupt between the call
and the assignment would lose both, so it is held there. Where a callback can save the run, the
first signal asks for the end of the call under way, and the second ends the run at once.
"""

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERMINATED = 128 + signal.SIGTERM
"""The exit code after SIGTERM, 143, as a shell tells it."""


class _State:
    held = False
    pending: int | None = None
    asked: int | None = None


_state = _State()


def asked_to_end() -> int | None:
    """The signal that asked for the end of the run, or None."""
    return _state.asked


def end(number: int) -> None:
    """Ends the run as the signal does: KeyboardInterrupt, or SystemExit with `TERMINATED`."""
    _state.asked = None
    if number == signal.SIGTERM:
        raise SystemExit(TERMINATED)
    raise KeyboardInterrupt


@contextmanager
def interrupts_held() -> Generator[None, None, None]:
    """Within, signals wait; they are raised at the end. Only inside `interrupts_guarded`."""
    _state.held = True
    try:
        yield
    finally:
        _state.held = False
        number, _state.pending = _state.pending, None
        if number is not None:
            end(number)


@contextmanager
def interrupts_guarded(*, saves: bool) -> Generator[None, None, None]:
    """Makes signals heed `interrupts_held`, but those for which the user has a handler.

    Args:
        saves: whether the run is saved at the end of a call when asked to end. If not, Ctrl-C ends
            it at once, and SIGTERM is as it was.
    """
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if saves:
        usual[signal.SIGTERM] = signal.SIG_DFL
    ours = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
    if threading.current_thread() is not threading.main_thread() or not ours:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if saves and _state.asked is None:
            _state.asked = number
            print("solstice: saving after the steps under way; again ends at once", file=sys.stderr)
        elif _state.held:
            _state.pending = number
        else:
            end(number)

    for number in ours:
        signal.signal(number, handle)
    try:
        yield
        if _state.asked is not None:  # after the last step: the run has ended, the process shall
            end(_state.asked)
    finally:
        _state.asked = None
        for number in ours:
            signal.signal(number, usual[number])
