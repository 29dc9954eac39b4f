"""Signals: Ctrl-C and SIGTERM end a run where it can be saved exactly.

A signal asks for the end of one run: the outermost of the main thread that saves. Its current steps
and callbacks finish first, but a wait for data, a validation, and a run within one of its
callbacks are cut short. A second signal ends the run at once.

A compiled call destroys the old arrays and returns the new ones. An interrupt between the call and
the assignment would lose both, so signals wait there.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from solstice._console import say

TERMINATED = 128 + signal.SIGTERM
"""The exit code after SIGTERM, 143, as a shell shows it."""


class Guard:
    """The effect of signals on one run.

    Args:
        saves: whether the run can be saved when a signal asks for its end.
        agrees: whether the run ends only after all processes have agreed on a signal.

    Attributes:
        asked: the signal that asked for the end of the run, or None.
        awaits_agreement: whether other processes do not know of the signal yet.
        is_urgent: whether a second signal came. Nothing more is saved then.
        has_begun: whether there is something to save. Before, a signal ends the run at once.
        point: makes the record of the moment that can be saved now; None while the state is
            inconsistent, such as during a callback.
    """

    def __init__(self, *, saves: bool = False, agrees: bool = False) -> None:
        self.saves = saves
        self.awaits_agreement = agrees
        self.asked: int | None = None
        self.is_urgent = False
        self.has_begun = False
        self.point: Callable[[], Any] | None = None


class _Here(threading.local):
    """The state of this thread. Python handles signals in the main thread only."""

    held = False
    waits = False
    pending: int | None = None


_here = _Here()
_guards: list[Guard] = []
"""The guards of the runs of the main thread, outermost first."""

_asked: set[Guard] = set()
"""Those that a signal has asked to end; usually none, so that a wait for a batch costs nothing."""

_replaced: dict[int, Any] = {}
"""The original handlers, by signal, while ours are installed."""


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _owner() -> Guard | None:
    """The guard of the run whose end a signal asks for."""
    return next((guard for guard in _guards if guard.saves), None)


def _end(number: int) -> None:
    """Raises the exception of a signal: KeyboardInterrupt, or SystemExit with 143."""
    if number == signal.SIGTERM:
        raise SystemExit(TERMINATED)
    raise KeyboardInterrupt


def end_if_asked() -> None:
    """Ends the current run if a signal has asked for it, and the run can be saved now.

    The run to save is the current one, or one around it.
    """
    owner = _owner()
    if owner is None or owner.asked is None or owner.point is None or not _is_main_thread():
        return
    if not owner.awaits_agreement:
        _end(owner.asked)


def signal_asked() -> int | None:
    """The signal that asks for the end of a run of this process, or None."""
    owner = _owner()
    return None if owner is None else owner.asked


def agree_on_signal(number: int) -> None:
    """Has a signal, which any process received, end the run of this one."""
    owner = _owner()
    if owner is None:  # nobody saves
        _end(number)
    else:
        owner.asked, owner.awaits_agreement = owner.asked or number, False
        _asked.add(owner)


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
    """Starts a wait for data, which a signal may cut short."""
    # First: a signal that came after the check and before this line would cut no wait short.
    _here.waits = True
    if _asked:
        end_if_asked()


def end_wait() -> None:
    """Ends the wait of `begin_wait`, also after an error."""
    _here.waits = False


@contextmanager
def waiting() -> Generator[None, None, None]:
    """Within, the code waits for data, and a signal may cut it short."""
    try:
        begin_wait()
        yield
    finally:
        end_wait()


@contextmanager
def interrupts_guarded(*, saves: bool, agrees: bool = False) -> Generator[Guard, None, None]:
    """Handles signals for a run, except those for which the user has a handler.

    Yields the guard of the run. Outside of the main thread, Python handles no signals, and the
    guard never changes.

    Args:
        saves: whether the run can be saved when a signal asks for its end. If not, Ctrl-C ends it
            at once, and the handler of SIGTERM is not replaced.
        agrees: whether the run is one of several processes, which agree on a signal first.
    """
    guard = Guard(saves=saves, agrees=agrees)
    if not _is_main_thread():
        yield guard
        return
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if saves:
        usual[signal.SIGTERM] = signal.SIG_DFL
    # Only default handlers are replaced: a handler of the user stays in charge.
    ours = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
    _guards.append(guard)
    for number in ours:
        _replaced[number] = usual[number]
        signal.signal(number, _handle)
    try:
        yield guard
        if guard.asked is not None:  # the run ended first, but the process must end too
            _end(guard.asked)
    finally:
        _guards.remove(guard)
        _asked.discard(guard)
        for number in ours:
            signal.signal(number, _replaced.pop(number))


def _leave_workers_alone() -> None:
    """Restores the handlers in a forked process, such as a data worker, which saves nothing."""
    for number, handler in _replaced.items():
        with suppress(ValueError):  # outside of the main thread, where no handler can be set
            signal.signal(number, handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_workers_alone)


def _handle(number: int, frame: FrameType | None) -> None:
    del frame
    owner = _owner()
    if owner is None or owner.asked is not None or not owner.has_begun:
        if owner is not None:
            owner.is_urgent = True
        if _here.held:  # the new state is being assigned: `interrupts_held` raises it at its end
            _here.pending = number
            return
        _end(number)
    else:
        owner.asked = number
        _asked.add(owner)
        text = "saving after the current steps; a second signal ends the run at once"
        say(text, logging.WARNING)
        if _here.waits and not _here.held:  # because a data set may wait for ever
            end_if_asked()
