"""Meetings: the moments of a run at which several processes agree on what comes next."""

import logging
from collections.abc import Mapping
from typing import Any, cast

from solstice import _tree
from solstice._agreement import Agreed, Word
from solstice._console import say
from solstice._engine import (
    Block,
    Feeder,
    Guard,
    ResidentFeeder,
    agree_on_signal,
    end_if_asked,
    signal_asked,
)
from solstice._errors import DataError
from solstice._loop._epoch import Call
from solstice._loop._hooks import Hooks
from solstice._loop._peers import Peers, check_kinds
from solstice._loop._state import RunState
from solstice._record import Stop
from solstice._sources import fingerprint

_FIRST = ", first batch "
"""What separates the shapes of a batch from its fingerprint."""

_LOGGED = "after the callbacks that log"
"""The moment before a validation or a save within an epoch."""


class Meetings:
    """The meetings of a run. All processes hold the same ones, in the same order.

    What decides on them is the same in all: the data, the cadences of callbacks, and what the
    processes have agreed on before.

    Args:
        peers: the other processes.
        state: the moment of the run; after a stop of any process, that of the stop.
        hooks: the callbacks. They receive the request of the process that stopped first.
        guard: the signals. It receives the first signal of any process.
    """

    def __init__(self, peers: Peers, state: RunState, hooks: Hooks, guard: Guard) -> None:
        self._guard = guard
        self._peers = peers
        self._state = state
        self._hooks = hooks

    def between_calls(self, what: str) -> None:
        """Agrees on a request to stop, and on a signal."""
        self._meet(what, None, self._hooks.stop)

    def before_call(
        self, feeder: Feeder | ResidentFeeder, block: Block | None, stop: Stop | None
    ) -> Block | None:
        """The part of a block for which all processes have batches; None if there is no call.

        Nothing of a callback or a data set runs between this meeting and the call, because the
        others would wait for a call that this process does not make.

        Args:
            feeder: takes the batches back that other processes do not have.
            block: the batches that this process has.
            stop: the request to stop, if it is from before the hooks of the next step.

        Raises:
            DataError: the batches of the processes have other shapes.
        """
        agreed = self._meet("before the next call", block, stop)
        if agreed.stop:
            if self._state.epoch.call is not None:
                self._state.rewind(self._state.epoch.call)
            block = None
        if self._guard.saves:
            self._guard.point = self._state.interrupted
        end_if_asked()
        return None if block is None else self._common(feeder, block, agreed)

    def _common(
        self, feeder: Feeder | ResidentFeeder, block: Block, agreed: Agreed
    ) -> Block | None:
        """The batches of a block that all processes have."""
        self._check_alike(dict(agreed.kinds))
        if agreed.batches == len(block):
            return block
        if agreed.batches > 0:
            return feeder.cut(cast("Any", block), agreed.batches)  # one of its own blocks
        at = self._state.at
        say(
            f"{at.mode}, epoch {at.epoch}: it ends after {at.epoch_step} batches, because another "
            f"process has no more. {len(block)} or more of this process are not used",
            logging.WARNING,
        )
        return None

    def _check_alike(self, kinds: Mapping[str, int]) -> None:
        """Raises a DataError for batches of other shapes, or for another data set in an epoch."""
        shapes: dict[str, int] = {}
        for kind, process in kinds.items():
            shapes.setdefault(kind.partition(_FIRST)[0], process)
        check_kinds(shapes)
        if len(kinds) > 1:
            at, other = self._state.at, max(kinds.values())
            raise DataError(
                f"process {other} has another first batch in epoch {at.epoch} of {at.mode!r} than "
                f"process 0. All processes iterate the same data set: give the order of each epoch "
                f"a seed that is the same in all"
            )

    def goes_on(self, call: Call, is_common: bool) -> bool:
        """Whether no process has stopped before the last step of a call, at which the run is.

        Args:
            call: the call.
            is_common: whether all validate or save after that step.
        """
        if is_common:
            self.between_calls(_LOGGED)
            self._state.epoch.has_met = True
        return self._state.epoch.count == len(call)

    def after_stop(self, is_common: bool) -> None:
        """Takes part in the meeting of `goes_on`, in a process that stopped before it."""
        if is_common and not self._state.epoch.has_met:
            self.between_calls(_LOGGED)

    def wait_for_compilation(self, what: str) -> None:
        """Waits until all processes have compiled a program."""
        self._peers.wait_for_compilation(what)

    def _meet(self, what: str, block: Block | None, stop: Stop | None) -> Agreed:
        state, hooks = self._state, self._hooks
        call = state.epoch.call
        at, count = (state.at, 0) if call is None else (call.start, len(call))
        word = Word(
            0 if block is None else len(block),
            "" if stop is None else str(stop) or type(stop).__name__,
            None if stop is None else state.epoch.count,
            signal_asked() or 0,
            # The same in all, also in one that stopped at an earlier step of the call.
            f"{at.mode}, epoch {at.epoch}, batch {at.epoch_step + count}, {what}",
            "" if block is None else _kind(block, is_first=call is None),
        )
        agreed = self._peers.agree(word)
        if agreed.signal:
            agree_on_signal(agreed.signal)
        if agreed.stop and stop is None:
            hooks.request(Stop(f"process {agreed.by} stopped: {agreed.stop}"))
        if agreed.stop and agreed.stop_at is not None and call is not None:
            state.move_to(call, agreed.stop_at)
        return agreed


def _kind(block: Block, *, is_first: bool) -> str:
    """The shapes of a batch, in words, and of the first one of an epoch the fingerprint."""
    shapes = ", ".join(f"{x.dtype}{list(x.shape[1:])}" for x in _tree.leaves(block.placed))
    names_first = is_first and block.is_whole  # shares differ anyway
    return f"{shapes}{_FIRST}{fingerprint(block.arrays(0))}" if names_first else shapes
