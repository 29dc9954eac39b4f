"""Peers: the processes that save or load together; an error in one is an error in all."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar, cast

import jax

from solstice import _service
from solstice._errors import CheckpointError

_T = TypeVar("_T")

TIMEOUT = 600.0
"""Seconds for which a process waits for the others at a step of a save or a load."""

_ids = count()


class Peers:
    """`peers = Peers("runs/a is saved")`: the processes of one save or load, or this one alone.

    They talk through the coordination service of JAX and not through the devices, so they may do
    so in a thread, and a missing process is named. Make it in the main thread, where all processes
    do the same in the same order.

    Args:
        what: what they do together, for messages.
    """

    def __init__(self, what: str) -> None:
        self.count, self._what = jax.process_count(), what
        self.is_first = jax.process_index() == 0
        self._id, self._step = next(_ids), count()

    @property
    def is_alone(self) -> bool:
        """Whether there is one process."""
        return self.count == 1

    def together(self, make: Callable[[], _T]) -> list[_T]:
        """`peers.together(make)`: the results of `make()` in all processes, which JSON must take.

        Raises:
            CheckpointError: `make` failed in another process, or a process did not come. Its own
                error is raised as it was.
        """
        if self.is_alone:
            return [make()]
        place = f"solstice/checkpoint/{self._id}/{next(self._step)}"
        try:
            mine = [make()]
        except BaseException as error:
            self._give_up(place, {"error": f"{type(error).__name__}: {error}"})
            raise
        said = self._exchange(place, {"made": mine})
        for index, word in enumerate(said):
            if "error" in word:
                raise CheckpointError(f"{self._what} failed in process {index}: {word['error']}")
        return [word["made"][0] for word in said]

    def each(self, make: Callable[[], _T]) -> _T:
        """`peers.each(make)`: the result of `make()` in this process, once all have made theirs."""
        made: list[_T] = []
        self.together(lambda: made.append(make()))
        return made[0]

    def first(self, make: Callable[[], _T]) -> _T:
        """`peers.first(make)`: the result of `make()` in the first process alone, on all."""
        return self.together(lambda: make() if self.is_first else cast("_T", None))[0]

    def check_same(self, words: dict[str, str]) -> None:
        """Raises a CheckpointError that names the first word in which the processes differ."""
        if len(set(self.together(lambda: _digest(words)))) == 1:
            return
        there = self.together(lambda: words)
        for index, other in enumerate(there[1:], 1):
            for name in {**there[0], **other}:
                if there[0].get(name) != other.get(name):
                    raise CheckpointError(
                        f"{self._what} by {self.count} processes, and {name} differs: it is "
                        f"{_shown(there[0].get(name))} in process 0, and "
                        f"{_shown(other.get(name))} in process {index}. Give all the same"
                    )

    def _exchange(self, place: str, word: Any) -> list[Any]:
        """The words of all processes, collected by the first, so that each reads one."""
        client, own = _client(), f"{place}/{jax.process_index()}"
        client.key_value_set(own, json.dumps(word))
        if self.is_first:
            client.key_value_set(f"{place}/all", json.dumps(self._collected(place)))
        # The first may begin to wait for a third one when this one has waited for the first.
        said = json.loads(self._read(f"{place}/all", 0, 2 * TIMEOUT))
        client.key_value_delete(own)
        return said

    def _give_up(self, place: str, word: Any) -> None:
        """Says to the others, without waiting for them, that this process has failed."""
        with suppress(Exception):  # the service may be gone; the error of this process matters
            name = "all" if self.is_first else jax.process_index()
            _client().key_value_set(
                f"{place}/{name}", json.dumps([word] if self.is_first else word)
            )

    def _collected(self, place: str) -> list[Any]:
        until = time.monotonic() + TIMEOUT
        said: list[Any] = []
        for index in range(self.count):
            try:
                text = self._read(f"{place}/{index}", index, until - time.monotonic())
                said.append(json.loads(text))
            except CheckpointError as error:
                said.append({"error": str(error)})
        return said

    def _read(self, key: str, index: int, seconds: float) -> str:
        try:
            return _client().blocking_key_value_get(key, max(1, int(1000 * seconds)))
        except Exception as error:  # of XLA, in its own class
            raise CheckpointError(
                f"{self._what} by {self.count} processes, and process {index} did not come within "
                f"{TIMEOUT:.0f} s. All processes must make the same calls in the same order "
                f"({error!s:.200})"
            ) from error


def _client() -> Any:
    client = _service.client()
    if client is None:
        raise CheckpointError(
            "several processes save and load together by the service that "
            "`jax.distributed.initialize()` starts: call it at the top of the script"
        )
    return client


def _digest(words: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _shown(word: str | None) -> str:
    return "missing" if word is None else f"{word:.80}"
