"""Lock on a checkpoint folder, so that one run at a time saves into it."""

import os
import secrets
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from solstice.checkpoint import (
    CheckpointError,
    is_url,
    read_object,
    remove_object,
    write_object,
)

_T = TypeVar("_T")
_NAME = ".solstice.lock"


class FolderLock(Generic[_T]):
    """`FolderLock(folder, owner, clash)`: hold the lock of a folder until `close`.

    The operating system releases the lock when the process ends for any reason. On a file system
    without locks, it works only between the runs of this process.

    Args:
        folder: the folder; it is created.
        owner: the object that holds the lock.
        clash: returns the error message for two owners in this process.

    Raises:
        CheckpointError: another run holds the lock, or the folder cannot be created or written.
    """

    def __init__(self, folder: Path, owner: _T, clash: Callable[[_T, _T], str]) -> None:
        self._owner = owner
        # One folder may be given by several paths.
        self._place = folder if is_url(folder) else Path(os.path.realpath(folder))
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
                f"give this run another folder: `Checkpoint({f'{folder}-2'!r})`"
            ) from error
        except OSError as error:
            if not self._place.is_dir() or not os.access(self._place, os.W_OK):
                raise CheckpointError(
                    f"checkpoints in {str(folder)!r} could not be written: {error}"
                ) from error
            return None  # the file system has no locks, or the lock file belongs to another user

    def check(self) -> None:
        """Raises a CheckpointError if another run has taken the lock, as it may in a bucket."""

    def close(self) -> None:
        """Removes the lock file while it is still locked, then releases the lock."""
        with _guard:
            handle, self._handle = self._handle, None
            if _held.get(self._place) is self:
                del _held[self._place]
            if handle is None:
                return
            if sys.platform != "win32":  # Windows cannot remove an open file
                with suppress(OSError):
                    os.unlink(self._place / _NAME)
            os.close(handle)

    def forget(self) -> None:
        """Closes the copied file of a forked process; the parent keeps the lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class BucketLock(FolderLock[_T]):
    """The lock of a folder in a bucket, which the newest run takes from an earlier one.

    Nothing there ends with a process, so nobody can say whether the earlier run is alive. If it is,
    its next save raises, and removes nothing.
    """

    def _open(self, folder: Path) -> None:
        self._mine = f"process {os.getpid()} on {socket.gethostname()} ({secrets.token_hex(4)})"
        write_object(folder / _NAME, self._mine)

    def check(self) -> None:
        found = read_object(self._place / _NAME)
        if found != self._mine:
            other = found or "it has ended since"
            raise CheckpointError(
                f"another run began to save into {str(self._place)!r}: {other:.200}. So this run "
                f"cannot save there: give each run a folder of its own"
            )

    def close(self) -> None:
        """Removes the lock if this run still has it."""
        try:
            is_held = _held.get(self._place) is self  # not in a forked process
            with suppress(CheckpointError):
                if is_held and read_object(self._place / _NAME) == self._mine:
                    remove_object(self._place / _NAME)
        finally:
            super().close()


def lock_of(folder: Path, owner: _T, clash: Callable[[_T, _T], str]) -> FolderLock[_T]:
    """The lock of a folder on the disk or in a bucket."""
    if is_url(folder):
        return BucketLock(folder, owner, clash)
    return FolderLock(folder, owner, clash)


def is_locked(folder: Path) -> bool | None:
    """Whether a run saves into a folder; None if no lock says so, as in a bucket."""
    if is_url(folder):
        return None
    try:
        handle = os.open(folder / _NAME, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # there is none, or it belongs to another user
        return None
    try:
        _lock(handle)
    except BlockingIOError:
        return True
    except OSError:  # the file system has no locks
        return None
    finally:
        os.close(handle)
    return False


_guard = Lock()
_held: WeakValueDictionary[Path, FolderLock[Any]] = WeakValueDictionary()


def _locked(path: Path) -> int:
    """Opens and locks a file, and writes the owner into it.

    Another process may remove the file between opening and locking, so it tries again until the
    locked file is the one at the path.
    """
    while True:
        # Not through a link, because the file is emptied below.
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
        os.close(handle)  # the previous owner has just removed this file


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
    """Drops all locks in a forked process; its open files would keep them after the parent ends."""
    global _guard
    _guard = Lock()  # another thread of the parent may have held it at the fork
    for lock in list(_held.values()):
        lock.forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
