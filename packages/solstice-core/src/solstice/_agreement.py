"""Agreement: what several processes say to each other before each block, and what follows from it.

A round has one folder of keys. Each process sets its text there. Process 0, the lead, reads all in
one request and sets a summary, for which the others wait. So a process makes two requests, however
many there are. The first summary of a round counts: a process that fails sets one too, and all
others raise its error.
"""

import atexit
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import jax

from solstice import _service
from solstice._console import say
from solstice._errors import PeerError, PeerFailed, PeerMismatch, PeerMissing

TIMEOUT = 600.0
"""Seconds that a process waits for the others, by default."""

_GLANCE = 1.0
"""Seconds after which a lead that waits for one process looks whether another has failed."""

_LATE = 5
"""Glances after which it says for which process it waits, once in a round."""

_ROOT = "solstice"
_SUMMARY = "summary"

_LONGEST = 4000
"""Characters of an error that are published."""

_MOST_PLACES = 8
"""Places that are named, when processes are at different ones."""

_Said = list[tuple[Any, list[int]]]
"""The different words of a round, each with the processes that said it, in order."""


@dataclass(frozen=True)
class Word:
    """What one process says before a block.

    Args:
        batches: how many batches it has at hand.
        stop: why it stopped, or "".
        stop_at: the step of the block before at which it stopped.
        signal: the number of the signal that asks for the end, or 0.
        phase: its place in the program, such as "train epoch 3 call 17": the same on all.
        kind: the kind of its batches, in words, or "" without any.
    """

    batches: int
    stop: str = ""
    stop_at: int | None = None
    signal: int = 0
    phase: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Agreed:
    """What follows from the words of all processes; the same on each.

    Attributes:
        batches: the fewest batches that any process has.
        most_batches: the most.
        stop: the reason of the process that stopped first, or "".
        stop_at: the first step at which one stopped.
        signal: the signal of the first process that has one, or 0.
        by: the index of the process with the signal, else of the one that stopped, else None. None
            too for a SIGTERM that came before the process could handle it, since JAX does not say
            to which process.
        kinds: the kinds of their batches, each with a process that has it. One run has one.
    """

    batches: int
    most_batches: int
    stop: str = ""
    stop_at: int | None = None
    signal: int = 0
    by: int | None = None
    kinds: tuple[tuple[str, int], ...] = ()


class Agreement:
    """`agreed = agreement().agree(Word(batches=32, phase="train epoch 3 call 17"))`.

    All processes call the same methods in the same order. Each method but `fail` is one round: it
    waits for all processes, and raises the same error in all if one failed (`PeerFailed`), if one
    does not arrive in time (`PeerMissing`), or if one is at another place (`PeerMismatch`).

    Args:
        service: the coordination service.
        process: the index of this process.
        num_processes: how many there are.
        timeout: how long a round waits, in seconds.
    """

    def __init__(
        self,
        service: _service.Service,
        process: int,
        num_processes: int,
        timeout: float = TIMEOUT,
    ) -> None:
        self.process, self.num_processes, self.timeout = process, num_processes, timeout
        self._service, self._round, self._oldest = service, 0, 0
        # JAX notes a SIGTERM that comes while Python has no handler for it, as before a run. The
        # lead waits for that note all the time, which costs nothing.
        self._note = service.watch(_service.PREEMPTION) if self.is_lead else None

    @property
    def is_lead(self) -> bool:
        """Whether this is process 0."""
        return self.process == 0

    def agree(self, word: Word, timeout: float | None = None) -> Agreed:
        """Says the word of this process, and returns what follows from those of all."""
        place, said = f"block {word.phase!r}", [*astuple(word)[:4], word.kind]
        return Agreed(*self._meet(place, said, self._agreed_of, timeout))

    def share(self, name: str, text: str, timeout: float | None = None) -> tuple[str, ...]:
        """The texts of all processes, in order. Costs each process all texts."""
        return tuple(self._meet(f"share {name!r}", text, _shared, timeout))

    def barrier(self, name: str, timeout: float | None = None) -> None:
        """Waits until all processes are here."""
        self._meet(f"barrier {name!r}", None, lambda _: None, timeout)

    def fail(self, error: BaseException) -> None:
        """Publishes an error, so that the other processes raise it. Never raises. Call it once.

        They raise it at once if they wait in a round, else in their next one.
        """
        if isinstance(error, PeerError):
            return  # the others have it already
        # Without its notes, which are about this process.
        self._end(f"{type(error).__name__}: {error}".removesuffix(": ")[:_LONGEST])

    def leave(self) -> None:
        """Publishes that this process ends, so that no other one waits for it. Never raises."""
        error = getattr(sys, "last_value", None)  # the one that ends it, outside of a run
        self._end("its script has ended") if error is None else self.fail(error)

    def _end(self, text: str) -> None:
        failure = ["failed", self.process, text]
        with suppress(Exception):
            # A round in which this process has spoken may have a summary: then the next one fails.
            while self._publish(failure)[0] == "said":
                self._round += 1
            self._service.set(self._key(self.process), _json(failure))  # wakes a waiting lead
            self._round += 1

    def _agreed_of(self, said: _Said) -> list[Any]:
        *rest, number, by = _agreed(said)
        if not number and self._note is not None and self._note.result(0) is not None:
            number, by = int(signal.SIGTERM), None
        return [*rest, number, by, _kinds(said)]

    def _meet(
        self, place: str, payload: object, combine: Callable[[_Said], Any], timeout: float | None
    ) -> Any:
        """One round: sets the text of this process, and returns the content of the summary."""
        seconds = self.timeout if timeout is None else timeout
        self._service.set(self._key(self.process), _json(["said", place, payload]))
        is_lead = self.is_lead
        summary = self._collect(place, combine, seconds) if is_lead else self._await(seconds)
        if summary is None:
            summary = self._publish(["missing", self._missing(), place, seconds])
        self._round += 1
        return _content(summary)

    def _await(self, seconds: float) -> list[Any] | None:
        """The summary of the lead, or of a process that failed; None if there is none in time."""
        text = self._service.wait(self._key(_SUMMARY), seconds).result(seconds)
        return None if text is None else json.loads(text)

    def _collect(
        self, place: str, combine: Callable[[_Said], Any], seconds: float
    ) -> list[Any] | None:
        """Waits for the texts of all, and publishes their summary; None if one is missing."""
        texts = self._texts(place, time.monotonic() + seconds)
        if texts is None:
            return None
        summary = self._publish(_summary(texts, combine))
        if summary[0] == "said":
            # All have spoken in this round, so none reads those before any more.
            for number in range(self._oldest, self._round):
                self._service.delete(self._folder(number))
            self._oldest = self._round
        return summary

    def _texts(self, place: str, deadline: float) -> list[str] | None:
        """The texts of all processes; None after the deadline, or once there is a summary."""
        names, texts = [str(i) for i in range(self.num_processes)], dict[str, str]()
        while missing := [name for name in names if name not in texts]:
            text = self._text_of(missing[0], place, deadline)
            if text is None:
                return None
            texts[missing[0]] = text
            if len(missing) > 1:
                texts |= self._service.read_all(self._folder())
        return [texts[name] for name in names]

    def _text_of(self, name: str, place: str, deadline: float) -> str | None:
        left = deadline - time.monotonic()
        wait, glances = self._service.wait(self._key(name), left), 0
        while (text := wait.result(min(left, _GLANCE))) is None:
            glances += 1
            if glances == _LATE:  # before JAX ends this process, if the other one is dead
                say(f"still waiting for process {name} at {place}", logging.WARNING)
            left = deadline - time.monotonic()
            if left <= 0 or self._service.read(self._key(_SUMMARY)) is not None:
                return None
        return text

    def _missing(self) -> list[int]:
        """The processes that have not spoken; if all have, the lead has not answered."""
        there = self._service.read_all(self._folder())
        return [i for i in range(self.num_processes) if str(i) not in there] or [0]

    def _publish(self, summary: list[Any]) -> list[Any]:
        """Sets the summary of the round, and returns the one that counts: the first."""
        key = self._key(_SUMMARY)
        if self._service.set(key, _json(summary)):
            return summary
        return json.loads(self._service.read(key) or _json(summary))

    def _folder(self, number: int | None = None) -> str:
        return f"{_ROOT}/{self._round if number is None else number}"

    def _key(self, name: object) -> str:
        return f"{self._folder()}/{name}"


def _json(content: object) -> str:
    return json.dumps(content, separators=(",", ":"), default=int)  # `int` for those of NumPy


def _summary(texts: list[str], combine: Callable[[_Said], Any]) -> list[Any]:
    """The summary of a round from the texts of all processes, in order."""
    processes: dict[str, list[int]] = {}
    for process, text in enumerate(texts):
        processes.setdefault(text, []).append(process)
    # Most texts are equal, so few are decoded.
    words = [(json.loads(text), who) for text, who in processes.items()]
    failed = next((word for word, _ in words if word[0] == "failed"), None)
    if failed is not None:
        return failed
    places: dict[str, int] = {}
    for (_, place, _), who in words:
        places.setdefault(place, who[0])
    if len(places) > 1:
        return ["apart", [[process, place] for place, process in places.items()][:_MOST_PLACES]]
    return ["said", combine([(payload, who) for (_, _, payload), who in words])]


def _content(summary: list[Any]) -> Any:
    """What the processes said, or the error that ended the round."""
    match summary:
        case ["said", content]:
            return content
        case ["failed", process, text]:
            raise PeerFailed(process, text)
        case ["missing", processes, place, timeout]:
            raise PeerMissing(tuple(processes), place, timeout)
        case _:
            raise PeerMismatch(tuple((process, place) for process, place in summary[1]))


def _agreed(said: _Said) -> list[Any]:
    """The fields of `Agreed`."""
    batches = [word[0] for word, _ in said]
    signals = [(who[0], word[3]) for word, who in said if word[3]]
    stops = [
        (math.inf if word[2] is None else word[2], who[0], word[1]) for word, who in said if word[1]
    ]
    at, stopped, reason = min(stops, default=(math.inf, None, ""))
    by, signal = signals[0] if signals else (stopped, 0)
    return [min(batches), max(batches), reason, None if at == math.inf else at, signal, by]


def _kinds(said: _Said) -> list[tuple[str, int]]:
    """The kinds of batches, each with the first process that has it."""
    found: dict[str, int] = {}
    for word, who in said:
        if word[4]:
            found.setdefault(word[4], who[0])
    return [*found.items()]


def _shared(said: _Said) -> list[str]:
    by_process = {process: text for text, who in said for process in who}
    return [by_process[process] for process in sorted(by_process)]


def agreement() -> Agreement | None:
    """The agreement of this process with the others, or None if it is alone."""
    client = _service.client()
    if client is None and jax.process_count() > 1:
        raise RuntimeError(
            f"JAX has {jax.process_count()} processes here, and they are not connected. Make "
            "`solstice.distributed.initialize()` the first line after the imports"
        )
    if client is None or _service.num_processes() == 1:
        return None
    return _of(client)


@lru_cache(maxsize=1)
def _of(client: _service.Client) -> Agreement:
    service = _service.Service(client)
    found = Agreement(service, _service.process_index(), _service.num_processes())
    atexit.register(found.leave)  # before JAX waits for the others
    return found
