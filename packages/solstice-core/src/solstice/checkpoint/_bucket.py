"""Checkpoints in a bucket, `gs://` or `s3://`: copies of local ones, whole or not at all.

Each save to `gs://bucket/best` uploads the files of a local checkpoint into a folder of its own,
such as `gs://bucket/best/000002-1f0c77aa`, the manifest last. The newest one that has a manifest is
the checkpoint, and the others are then removed. No object is written twice, so an upload that is
cut short cannot damage what was there before.
"""

import fnmatch
import os
import re
import secrets
import shutil
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, cast

import jax

from solstice._errors import CheckpointError
from solstice._paths import local_path
from solstice.checkpoint._files import ARRAYS, MANIFEST
from solstice.checkpoint._places import newest

_URL = re.compile(r"(gs|s3):/(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_VERSION = re.compile(r"(?P<number>[0-9]{6,})-[0-9a-f]{8}")
_PART = re.compile(rf"{re.escape(ARRAYS)}|{re.escape(MANIFEST)}|rows-[0-9]+\.jsonl")
_BYTES_AT_A_TIME = 2**24


class BucketError(CheckpointError):
    """The store failed, so its content is unknown."""


def place(given: str | PathLike[str], name: str) -> Path:
    """`place("gs://bucket/best", "path")`: the path of a checkpoint, local or in a bucket.

    One in a bucket is an `etils.epath.Path`, which is used as a `Path`.

    Raises:
        TypeError, ValueError: as in `local_path`; or the URL does not name a place in a bucket.
        ImportError: it is in a bucket, and etils is not installed.
    """
    words = str(given) if isinstance(cast("Any", given), str | PathLike) else ""
    found = _URL.match(words)
    if found is None or "\0" in words:
        return local_path(given, name)
    rest = found["rest"].removeprefix("/")
    if isinstance(given, Path) or not found["rest"].startswith("/"):
        url = f"{found[1].lower()}://{rest}"
        raise ValueError(f"{name} is {words!r}; a URL is given as text, such as {url!r}")
    if rest.startswith("/") or not rest.strip("/") or re.search(r"[*?\[\]#]", rest):
        raise ValueError(
            f"{name} must be a place in a bucket, such as 'gs://bucket/run', without the "
            f"characters * ? [ ] #; it is {words!r}"
        )
    return cast("Path", _epath().Path(f"{found[1].lower()}://{rest}"))


def _epath() -> ModuleType:
    try:
        return import_module("etils.epath")
    except ImportError as error:
        raise ImportError(f"checkpoints in a bucket need etils: {_INSTALL}") from error


_INSTALL = "`pip install 'etils[epath-gcs,epath-s3]>=1.15'`, the extra `cloud` of solstice-core"


def is_url(path: Path) -> bool:
    """Whether a path that `place` returned is in a bucket."""
    return _URL.match(str(path)) is not None


def absolute(path: Path) -> Path:
    """The path from the root, or the URL."""
    return path if is_url(path) else path.absolute()


def names_in(folder: Path) -> list[str]:
    """The names in a folder of a bucket, [] if nothing is there."""
    with _named(folder, "cannot be read"):
        _forget_list(folder)
        try:
            return sorted({path.name for path in folder.iterdir() if path != folder})
        except Exception as error:  # `exists` of fsspec would take any of them for "not there"
            if _is_missing(error):
                return []
            raise


def _is_missing(error: Exception) -> bool:
    # The second is of TensorFlow, which epath uses where it is installed.
    return isinstance(error, FileNotFoundError) or type(error).__name__ == "NotFoundError"


def read_object(path: Path) -> str | None:
    """The content of a small object; None if it is not there."""
    with _named(path, "cannot be read"):
        _forget_list(path.parent)
        try:
            return path.read_bytes().decode(errors="replace")
        except Exception as error:
            if _is_missing(error):
                return None
            raise


def write_object(path: Path, text: str) -> None:
    """Writes a small object, and replaces an old one."""
    with _named(path, "could not be written"):
        path.write_bytes(text.encode())


def remove_object(path: Path) -> None:
    """Removes a small object."""
    with _named(path, "could not be removed"):
        path.unlink(missing_ok=True)


def _forget_list(folder: Path) -> None:
    """Other processes write too, and libraries for fsspec keep the lists of folders."""
    find = getattr(getattr(folder, "_backend", None), "fs", None)
    if find is not None:
        find(folder).invalidate_cache()


@contextmanager
def _named(url: Path, what: str) -> Generator[None, None, None]:
    """Within, an error of any library for stores names the URL."""
    try:
        yield
    except CheckpointError:
        raise
    except ImportError as error:
        raise ImportError(f"{url} needs a library: {_INSTALL} ({error})") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error!s:.500}"
        raise BucketError(f"{url} {what}: {reason}") from error


def versions(url: Path) -> list[Path]:
    """What is at the place of a checkpoint, oldest first, also if its upload was cut short."""
    found = [match for match in map(_VERSION.fullmatch, names_in(url)) if match]
    return [url / m[0] for m in sorted(found, key=lambda m: (int(m["number"]), m[0]))]


def newest_version(url: Path) -> Path | None:
    """The version that is the checkpoint, or None."""
    return next((v for v in reversed(versions(url)) if MANIFEST in names_in(v)), None)


def check_replaceable(url: Path) -> None:
    """Raises a CheckpointError if a save would go into another folder, or is of many processes."""
    if jax.process_count() > 1:
        raise CheckpointError(
            f"{url} is in a bucket, and {jax.process_count()} processes save into a folder that "
            f"all of them share: give the path of one, such as on NFS"
        )
    others = [name for name in names_in(url) if not _VERSION.fullmatch(name)]
    if others:
        raise CheckpointError(
            f"{url} is there and is not a checkpoint, since it has {others[0]!r}: give another path"
        )


def upload(folder: Path, url: Path) -> None:
    """Uploads a local checkpoint, and then removes what was there.

    Raises:
        CheckpointError: it failed; what was there before is still there.
    """
    there = versions(url)
    number = int(there[-1].name.partition("-")[0]) + 1 if there else 1
    new = url / f"{number:06}-{secrets.token_hex(4)}"
    with _named(url, "could not be written"):
        try:
            for name in sorted(os.listdir(folder), key=lambda name: name == MANIFEST):
                _copy(folder / name, new / name)
        except Exception:
            with suppress(Exception):  # the first error matters; the next save tries again
                _drop(new)
            raise
    with suppress(Exception):
        for old in there:
            _drop(old)


def _copy(path: Path, to: Path) -> None:
    with path.open("rb") as source, to.open("wb") as file:
        shutil.copyfileobj(source, file, _BYTES_AT_A_TIME)


def _drop(version: Path) -> None:
    """Removes the manifest and then the rest, which is not a checkpoint without it."""
    parts = [name for name in names_in(version) if _PART.fullmatch(name)]
    for name in sorted(parts, key=lambda name: name != MANIFEST):
        (version / name).unlink()


@contextmanager
def opened(path: Path, pattern: str = "*") -> Generator[Path, None, None]:
    """The checkpoint as a local folder: a copy if it is in a bucket.

    Args:
        path: what `place` returned.
        pattern: the files to copy.
    """
    if not is_url(path):
        yield newest(path)
        return
    with TemporaryDirectory(prefix="solstice-") as home:
        folder = Path(home, path.name)
        with _as(path, folder):
            _download(path, folder, pattern)
            yield folder


def _download(url: Path, folder: Path, pattern: str) -> None:
    version = newest_version(url)
    if version is None:
        there = ", ".join(map(repr, names_in(url)[-3:]))
        found = f"has no manifest, but {there}" if there else "is empty or does not exist"
        raise CheckpointError(f"{url} is not a checkpoint: it {found}")
    folder.mkdir()
    with _named(url, "cannot be read"):
        for name in fnmatch.filter(names_in(version), pattern):
            _copy(version / name, folder / name)


@contextmanager
def _as(url: Path, folder: Path) -> Generator[None, None, None]:
    """Within, errors that name a local copy name the URL."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(str(error).replace(str(folder), str(url))) from error.__cause__


class Copy:
    """`copy = Copy(url)`: a place on the disk for a checkpoint until it is in the bucket."""

    def __init__(self, url: Path) -> None:
        self._url, self._home = url, TemporaryDirectory(prefix="solstice-")
        self.folder = Path(self._home.name, url.name)

    @contextmanager
    def named(self) -> Generator[None, None, None]:
        """Within, errors name the URL, and end the copy."""
        try:
            with _as(self._url, self.folder):
                yield
        except BaseException:
            self._home.cleanup()
            raise

    def upload(self) -> Path:
        """Uploads it, and removes it from the disk."""
        with self._home:
            upload(self.folder, self._url)
        return self._url


def remove(url: Path) -> None:
    """Removes a checkpoint; the oldest version first, else it would be the checkpoint for a while.

    Raises:
        CheckpointError: it is not a checkpoint, or cannot be removed.
    """
    if newest_version(url) is None:
        raise CheckpointError(f"{url} is not a checkpoint, and was not removed")
    with _named(url, "could not be removed"):
        for version in versions(url):
            _drop(version)


def sweep(folder: Path, chosen: Collection[str] | None) -> list[Path]:
    """Removes uploads that were cut short and versions that were replaced; returns them."""
    found = names_in(folder)
    places = [folder / name for name in found if chosen is None or name in chosen]
    waste = [version for url in places for version in _waste(url)]
    for version in waste:
        with _named(version, "could not be removed"):
            _drop(version)
    return waste


def _waste(url: Path) -> list[Path]:
    there, kept = versions(url), newest_version(url)
    return [version for version in there if version != kept]
