"""`initialize`: connect the processes of a run."""

import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from solstice import _arguments, _service
from solstice._agreement import agreement
from solstice._console import say
from solstice.distributed._launchers import clue

_GIVE = "give coordinator_address=..., num_processes=..., process_id=..."
_UNRESOLVED = ("coordinator_address should", "Number of processes must", "The process id of the")
"""How JAX's errors start if it has not found an argument."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    local_device_ids: int | Sequence[int] | None = None,
    *,
    timeout: int = 30,
    cluster_detection_method: str | None = None,
) -> None:
    """`solstice.distributed.initialize()`, the first line of a script after the imports.

    Connects the processes that `srun`, `mpirun`, a Kubernetes Job or a Cloud TPU has started. It
    is `jax.distributed.initialize` with short timeouts. The same script runs alone too: where
    nothing points to other processes, this does nothing. A second call does nothing either.

    SIGTERM no longer ends a process that is connected: the next `fit` saves, and ends all of them.

    Args:
        coordinator_address: "host:port" of process 0, for launchers that JAX does not know.
        num_processes: how many processes there are. 1: this one is alone.
        process_id: the index of this process, from 0.
        local_device_ids: the devices of this process. With SLURM and Open MPI, JAX gives each
            process one GPU, the one of its local rank; otherwise all.
        timeout: seconds within which all processes must connect, and after which one that shows no
            sign of life, or does not end with the others, ends them all. Raise it where hosts start
            far apart.
        cluster_detection_method: "mpi4py" for an MPI that JAX does not know.

    Raises:
        RuntimeError: no other process was found, though the environment points to some; JAX has
            used its devices already; or it was called before with other arguments.
        ValueError: an argument cannot be used.
    """
    given: dict[str, object] = {
        "coordinator_address": _address(coordinator_address),
        "num_processes": num_processes,
        "process_id": process_id,
    }
    seconds = _arguments.whole("timeout", timeout, 1, "second")
    if _service.client() is not None:
        _check_same(given)
    elif num_processes == 1 and coordinator_address is None:
        return
    elif _service.has_backend():
        _check_alone(given)
    else:
        ids = [local_device_ids] if isinstance(local_device_ids, int) else local_device_ids
        more = {"local_device_ids": ids, "cluster_detection_method": cluster_detection_method}
        _connect(given, more, seconds)


def _connect(given: Mapping[str, object], more: Mapping[str, object], seconds: int) -> None:
    where = given["coordinator_address"] or "the address that the launcher gave"
    text = f"still waiting for the other processes at {where}; this ends after {seconds} s"
    late = threading.Timer(seconds / 2, say, [text])
    late.start()
    try:
        _service.connect(seconds, **given, **more)
    except (KeyError, ValueError) as error:
        if not _is_unresolved(error):
            raise
        _check_found(given, error)
    else:
        _restore_handler()
        agreement()  # from now on, the others hear of the end of this process
    finally:
        late.cancel()


def _is_unresolved(error: Exception) -> bool:
    """Whether JAX has not found an argument. JAX 0.6 reads variables of SLURM that are not set."""
    [first, *_] = error.args or [""]
    return str(first).startswith("SLURM_" if isinstance(error, KeyError) else _UNRESOLVED)


def _check_found(given: Mapping[str, object], error: Exception) -> None:
    """Raises unless nothing points to other processes."""
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and clue() is None:
        return
    reason = clue() or f"{' and '.join(missing)} not given, and no launcher says it"
    raise RuntimeError(
        f"No cluster found: {reason}. Start with `srun` or `mpirun`, or {_GIVE}. If this process "
        "is alone: `solstice.distributed.initialize(num_processes=1)`"
    ) from error


def _check_alone(given: Mapping[str, object]) -> None:
    """Raises unless nothing points to other processes; JAX has used its devices already."""
    if any(value is not None for value in given.values()) or clue() is not None:
        raise RuntimeError(
            "Other processes cannot be connected any more, because JAX has used its devices "
            "already (any array does that). Make `solstice.distributed.initialize()` the first "
            "line after the imports"
        )


def _check_same(given: Mapping[str, object]) -> None:
    """Raises if this process is connected in another way."""
    connected = {
        "coordinator_address": _service.coordinator_address(),
        "num_processes": _service.num_processes(),
        "process_id": _service.process_index(),
    }
    other = [k for k, value in given.items() if value is not None and value != connected[k]]
    if other:
        now = ", ".join(f"{name}={connected[name]!r}" for name in other)
        then = ", ".join(f"{name}={given[name]!r}" for name in other)
        raise RuntimeError(
            f"This process is connected already, with {now}, and cannot be again with {then}. Call "
            "`solstice.distributed.initialize` once, before anything else"
        )


def _address(address: str | None) -> str | None:
    if address is None or address.rpartition(":")[2].isdigit():
        return address
    raise ValueError(f'coordinator_address must be "host:port", not {address!r}')


def _restore_handler() -> None:
    """Gives SIGTERM back to the user's handler, if any: JAX has replaced it, unseen by Python."""
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler):
        with suppress(ValueError):  # outside of the main thread
            signal.signal(signal.SIGTERM, handler)
