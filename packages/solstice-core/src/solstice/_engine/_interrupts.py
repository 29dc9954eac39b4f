"""Ctrl-C and SIGTERM: never lost between two states, and heeded where a run can be saved.

A signal asks for the end of one run: the outermost of the main thread that saves. That run ends
where it can be saved exactly. Until then its steps and callbacks finish, but a wait for data, a
validation, and a run within one of its callbacks are cut short. A second signal ends it at once.

A compiled call takes the old arrays for good and returns the new ones. An interrupt between the
call and the assignment would lose both, so signals wait there.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from solstice._console import is_terminal, write_line

TERMINATED = 128 + signal.SIGTERM
"""The exit code after SIGTERM, 143, as a shell shows it."""


class Guard:
    """What signals do to one run.

    Args:
        saves: whether the run can be saved when a signal asks for its end.

    Attributes:
        asked: the signal that asked for the end of the run, or None.
        is_urgent: whether another signal came since: nothing more is saved.
        has_begun: whether there is something to save; until then, a signal ends the run at once.
        point: makes the record of the moment that can be saved now; None where the run must first
            finish what it is doing.
    """

    def __init__(self, *, saves: bool = False) -> None:
        self.saves = saves
        self.asked: int | None = None
        self.is_urgent = False
        self.has_begun = False
        self.point: Callable[[], Any] | None = None


class _Here(threading.local):
    """What this thread is doing. Signals are handled in the main thread alone."""

    held = False
    waits = False
    pending: int | None = None


_here = _Here()
_guards: list[Guard] = []
"""Of the runs of the main thread, outermost first."""

_replaced: dict[int, Any] = {}
"""The handlers in whose place ours are now, by signal."""


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _owner() -> Guard | None:
    """The guard of the run whose end a signal asks for."""
    return next((guard for guard in _guards if guard.saves), None)


def _end(number: int) -> None:
    """Ends what is running as the signal does: KeyboardInterrupt, or SystemExit with 143."""
    if number == signal.SIGTERM:
        raise SystemExit(TERMINATED)
    raise KeyboardInterrupt


def end_if_asked() -> None:
    """Ends a run between two calls if the run that a signal asked to end can be saved now.

    That is the same run, or one around it.
    """
    owner = _owner()
    if owner is None or owner.asked is None or owner.point is None or not _is_main_thread():
        return
    _end(owner.asked)


@contextmanager
def interrupts_held() -> Generator[None, None, None]:
    """Within, signals wait; they are raised at the end. Only inside `interrupts_guarded`."""
    _here.held = True
    try:
        yield
    finally:
        _here.held = False
        number, _here.pending = _here.pending, None
        if number is not None:
            _end(number)


def begin_wait() -> None:
    """From here to `end_wait` a signal may cut the code short: it waits for data."""
    _here.waits = True
    if _guards:
        end_if_asked()


def end_wait() -> None:
    """What follows `begin_wait` has ended, or failed."""
    _here.waits = False


@contextmanager
def waiting() -> Generator[None, None, None]:
    """Within, a signal may cut the code short: it waits for data."""
    try:
        begin_wait()
        yield
    finally:
        end_wait()


@contextmanager
def interrupts_guarded(*, saves: bool) -> Generator[Guard, None, None]:
    """Handles signals for a run, except those for which the user has a handler.

    Yields the guard of the run. Outside the main thread, where Python handles no signals, it is
    one that no signal reaches.

    Args:
        saves: whether the run is saved when asked to end. If not, Ctrl-C ends it at once, and the
            handler of SIGTERM is left alone.
    """
    guard = Guard(saves=saves)
    if not _is_main_thread():
        yield guard
        return
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if saves:
        usual[signal.SIGTERM] = signal.SIG_DFL
    ours = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
    _guards.append(guard)
    for number in ours:
        _replaced[number] = usual[number]
        signal.signal(number, _handle)
    try:
        yield guard
        if guard.asked is not None:  # after the last step: the run has ended, the process shall
            _end(guard.asked)
    finally:
        _guards.remove(guard)
        for number in ours:
            signal.signal(number, _replaced.pop(number))


def _leave_workers_alone() -> None:
    """In a process that was forked within a run: signals end it, and save nothing."""
    for number, handler in _replaced.items():
        with suppress(ValueError):
            signal.signal(number, handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_workers_alone)


def _handle(number: int, frame: FrameType | None) -> None:
    del frame
    owner = _owner()
    if owner is None or owner.asked is not None or not owner.has_begun:
        if owner is not None:
            owner.is_urgent = True
        if _here.held:
            _here.pending = number
            return
        _end(number)
    else:
        owner.asked = number
        _say("solstice: saving after the steps under way; again ends at once")
        if _here.waits and not _here.held:
            end_if_asked()


def _say(text: str) -> None:
    """Prints from within a handler, below the progress bar that may be on the line."""
    line = f"\n{text}" if is_terminal(sys.stderr) else text
    try:
        write_line(line, sys.stderr)
    except RuntimeError:  # the signal came while a line was being written
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
