"""One writer for a folder of checkpoints."""

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from solstice.checkpoint import CheckpointError

_T = TypeVar("_T")
_NAME = ".solstice.lock"


class FolderLock(Generic[_T]):
    """`FolderLock(folder, owner, clash)`: until `close`, no other run saves into the folder.

    The operating system releases it when the process ends, whatever ends it. Where the file system
    has no locks, only runs of this process are kept apart.

    Args:
        folder: the folder, which is made.
        owner: whose lock it is.
        clash: what to say of two owners in this process.

    Raises:
        CheckpointError: another run has it, or the folder cannot be made.
    """

    def __init__(self, folder: Path, owner: _T, clash: Callable[[_T, _T], str]) -> None:
        self._owner = owner
        self._place = Path(os.path.realpath(folder))
        self._handle: int | None = None
        with _guard:
            other = _held.get(self._place)
            if other is not None:
                raise CheckpointError(clash(owner, other._owner))
            self._handle = self._open(folder)
            _held[self._place] = self

    def _open(self, folder: Path) -> int | None:
        try:
            self._place.mkdir(parents=True, exist_ok=True)
            return _locked(self._place / _NAME)
        except BlockingIOError as error:
            raise CheckpointError(
                f"another process saves into {str(folder)!r}: {error}. End it or wait for it, or "
                f"give this run a folder of its own: `Checkpoint({f'{folder}-2'!r})`"
            ) from error
        except OSError as error:
            if not self._place.is_dir() or not os.access(self._place, os.W_OK):
                raise CheckpointError(
                    f"checkpoints in {str(folder)!r} could not be written: {error}"
                ) from error
            return None  # a file system without locks, or a file of somebody else

    def close(self) -> None:
        """Lets others write. The file goes too, before somebody else can have it."""
        with _guard:
            handle, self._handle = self._handle, None
            if _held.get(self._place) is self:
                del _held[self._place]
            if handle is None:
                return
            if sys.platform != "win32":  # which removes no file that is open
                with suppress(OSError):
                    os.unlink(self._place / _NAME)
            os.close(handle)

    def forget(self) -> None:
        """In a process that was forked from the one that has the lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


_guard = Lock()
_held: WeakValueDictionary[Path, FolderLock[Any]] = WeakValueDictionary()


def _locked(path: Path) -> int:
    """A file that is open and locked; it says who has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(handle)
            if _is_at(handle, path):
                with suppress(OSError):  # a full disk
                    os.ftruncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        except BlockingIOError as error:
            said = os.read(handle, 200).decode(errors="replace")
            os.close(handle)
            raise BlockingIOError(said or "it does not say which") from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the one that had it has just removed the file


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _after_fork() -> None:
    """A process that was forked holds no lock, and must not keep one when its parent ends."""
    global _guard
    _guard = Lock()
    for lock in list(_held.values()):
        lock.forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
