"""The coordination service of JAX: texts by key, which all processes can set and read.

The service runs in process 0. JAX keeps its client private: only this module uses it.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar, cast

from jax._src import distributed as _distributed
from jax._src import xla_bridge as _xla_bridge

from solstice._errors import PeerFailed

T = TypeVar("T")

PREEMPTION = "RECEIVED_PREEMPTION_NOTICE"
"""The key that JAX sets within a second of a SIGTERM, unless Python handles the signal."""

_FOREVER = 365 * 24 * 3600.0

_STATE = cast("Any", _distributed.global_state)


class Client(Protocol):
    """The methods of JAX's client that are used here."""

    def key_value_set(self, key: str, value: str) -> None: ...
    def key_value_try_get(self, key: str) -> str: ...
    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...
    def key_value_delete(self, key: str) -> None: ...


def client() -> Client | None:
    """The client of this process, or None before `connect`."""
    return _STATE.client


def process_index() -> int:
    """The index of this process; 0 before `connect`. Starts no backend."""
    return _STATE.process_id


def num_processes() -> int:
    """The number of processes; 1 before `connect`. Starts no backend."""
    return _STATE.num_processes if client() else 1


def coordinator_address() -> str | None:
    """The address of the service, or None before `connect`."""
    return _STATE.coordinator_address if client() else None


def has_backend() -> bool:
    """Whether JAX has found its devices; from then on, processes cannot connect."""
    return _xla_bridge.backends_are_initialized()


def connect(timeout: int, **arguments: object) -> None:
    """Like `jax.distributed.initialize`, with short timeouts in any version of JAX.

    Args:
        timeout: seconds for connecting, for a sign of life to come, and for shutting down.
        **arguments: the other arguments of `jax.distributed.initialize`.
    """
    beat = max(1, timeout // 10)
    timeouts = {
        "initialization_timeout": timeout,
        "heartbeat_timeout_seconds": timeout,
        "shutdown_timeout_seconds": timeout,
        # JAX 0.6 counts missed heartbeats instead, and 10 of them are the end.
        "service_heartbeat_interval_seconds": beat,
        "client_heartbeat_interval_seconds": beat,
    }
    known = inspect.signature(_STATE.initialize).parameters
    _STATE.initialize(**arguments, **{k: v for k, v in timeouts.items() if k in known})


class Wait:
    """One read of a key that may not be set yet. `text = wait.result(1.0)`."""

    def __init__(self) -> None:
        self.answers: SimpleQueue[str | RuntimeError] = SimpleQueue()
        self.answer: str | RuntimeError | None = None

    def result(self, seconds: float) -> str | None:
        """The text, or None if the key is not set in time. Signals cut the wait short."""
        if self.answer is None:
            with suppress(Empty):
                self.answer = self.answers.get(timeout=max(0, seconds))
        return _unless("DEADLINE_EXCEEDED", None, lambda: _raised(self.answer))


Read = tuple[str, float, Wait]


class Service:
    """`service = Service(client)`: set, read and await texts by key.

    A read of a key that is not set stays in the memory of the service, 35 kB, even if the client
    gives up. A loop of short reads would fill it: 8,192 processes that wait for a minute, 17 GB. So
    each wait is one read, in a thread, since signals do not interrupt a blocked read.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._reads = self._new_thread()
        self._last: Wait | None = None

    def set(self, key: str, text: str) -> bool:
        """Sets a key that is not set. Returns whether it did: the first text stays."""

        def call() -> bool:
            self._client.key_value_set(key, text)
            return True

        return _unless("ALREADY_EXISTS", False, call)

    def read(self, key: str) -> str | None:
        """The text of a key, or None if it is not set."""
        return _unless("NOT_FOUND", None, lambda: self._client.key_value_try_get(key))

    def read_all(self, folder: str) -> dict[str, str]:
        """The texts of all keys `folder/name`, by name, in one request."""
        found = _unless("NOT_FOUND", [], lambda: self._client.key_value_dir_get(folder))
        return {key.removeprefix(f"{folder}/"): text for key, text in found}

    def delete(self, folder: str) -> None:
        """Deletes all keys `folder/name`, in one request."""
        _unless("NOT_FOUND", None, lambda: self._client.key_value_delete(folder))

    def wait(self, key: str, timeout: float) -> Wait:
        """Starts to read a key; the read ends when the key is set, or after the timeout."""
        if self._last is not None and self._last.answer is None:  # interrupted: its thread is busy
            self._reads.put(None)
            self._reads = self._new_thread()
        self._last = Wait()
        self._reads.put((key, timeout, self._last))
        return self._last

    def watch(self, key: str) -> Wait:
        """Starts to read a key that may never be set, in a thread of its own."""
        wait, reads = Wait(), self._new_thread()
        reads.put((key, _FOREVER, wait))
        reads.put(None)
        return wait

    def _new_thread(self) -> "SimpleQueue[Read | None]":
        reads: SimpleQueue[Read | None] = SimpleQueue()
        Thread(target=_serve, args=(self._client, reads), daemon=True).start()
        return reads


def _serve(client: Client, reads: "SimpleQueue[Read | None]") -> None:
    while (read := reads.get()) is not None:
        key, timeout, wait = read
        try:
            wait.answers.put(client.blocking_key_value_get(key, max(1, int(timeout * 1000))))
        except RuntimeError as error:
            wait.answers.put(error)


def _unless(code: str, default: T, call: Callable[[], T]) -> T:
    """The result of a request, or the default if the service answers with this code."""
    try:
        return call()
    except RuntimeError as error:
        text = str(error).split("\n")[0]
        if text.startswith(code):
            return default
        raise PeerFailed(0, f"its coordination service does not answer: {text}") from error


def _raised(answer: str | RuntimeError | None) -> str | None:
    if isinstance(answer, RuntimeError):
        raise answer
    return answer
