"""Append-only lists: each checkpoint writes only the new items, to a file beside the manifest.

The checkpoints of one folder share the file by hard links, so that each has the whole file and none
pays for what an earlier one has written. A manifest says how many bytes of the file are its own;
what follows them belongs to later checkpoints. Nothing that a manifest refers to is ever written
again.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn, TypeGuard, TypeVar, cast

from solstice._arguments import instance
from solstice._errors import CheckpointError
from solstice._plain import from_plain, to_plain
from solstice.checkpoint._bucket import absolute, opened, place

_T = TypeVar("_T")
_NAME = re.compile(r"rows-[0-9]+\.jsonl")


def _refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
    """Refused, since the list only grows."""
    raise TypeError(
        "an AppendOnly list only grows, since checkpoints have its items: write `list(rows)` for a "
        "list that you can change"
    )


class AppendOnly(list[_T]):
    """`self.rows = solstice.checkpoint.AppendOnly()`: a list that grows with the run.

    ```python
    class Losses(solstice.Callback):
        def __init__(self):
            self.rows = solstice.checkpoint.AppendOnly()

        def on_epoch_end(self, record):
            self.rows.append({"step": record.step, "loss": record.metrics["loss"]})

        def state_dict(self):
            return {"rows": self.rows}

        def load_state_dict(self, state):
            self.rows = solstice.checkpoint.AppendOnly(state["rows"])
    ```

    A checkpoint writes only the items that are new, so that a save costs the same in a run of any
    length; a plain list is written whole each time. Items are what `state_dict` may hold. Each is
    written once: do not change it after you have appended it.

    Raises:
        TypeError: something other than adding at the end is tried.
    """

    def __init__(self, items: Iterable[_T] = ()) -> None:
        kind: Any = Iterable
        super().__init__(instance("items", items, kind, "an iterable of rows"))
        self._files: dict[Path, _File] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self),)  # what was written is of this object alone

    __setitem__ = __delitem__ = __imul__ = _refuse
    insert = pop = remove = clear = sort = reverse = _refuse

    def _write(self, count: int, where: str, new: Path, place: Path) -> dict[str, Any]:
        """Writes the first items for a checkpoint, sharing the file of its folder if possible.

        Args:
            count: how many items.
            where: what they belong to, for messages.
            new: the file to write.
            place: where it will be, in the end.

        Returns:
            Its entry in the manifest.
        """
        with self._lock:
            folder = place.parent.parent
            file = self._files.get(folder, _File())
            # A snapshot that is saved late has fewer rows than a later one has written.
            if file.count > count or not (file.count and file.share(new)):
                file = _File()
            lines = [json.dumps(to_plain(item, where)) for item in self[file.count : count]]
            file = file.appended(new, place, lines)
            # Forgets what is gone, so that this is as long as there are folders.
            self._files = {at: f for at, f in self._files.items() if f.path.exists()}
            self._files[folder] = file
            return file.about()


@dataclass(frozen=True)
class _File:
    """A file with the first items of a list, after the last write.

    Attributes:
        path: where it is.
        count, size: the items and bytes in it.
        digest: the SHA-256 of them.
        identity: which file it is, as it was left: another may have taken its path.
    """

    path: Path = Path()
    count: int = 0
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    identity: tuple[int, ...] | None = None

    def share(self, new: Path) -> bool:
        """Links the file under another name; False if it is gone or was changed."""
        try:
            if self.identity != _identity(self.path):
                return False
            _link_or_copy(self.path, new)
            if new.stat().st_size == self.size:
                return True
        except OSError:
            pass
        new.unlink(missing_ok=True)
        return False

    def appended(self, new: Path, place: Path, lines: list[str]) -> "_File":
        """The file after more lines are on the disk."""
        data = "".join(f"{line}\n" for line in lines).encode()
        digest = self.digest.copy()
        digest.update(data)
        with new.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        count, size = self.count + len(lines), self.size + len(data)
        return _File(place, count, size, digest, _identity(new))

    def about(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "file": self.path.name,
            "count": self.count,
            "bytes": self.size,
            "sha256": self.digest.hexdigest(),
        }


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()  # with the time, since the number of a file that is gone is given again
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Prefix:
    """The first items of an AppendOnly, as part of a note to save.

    Attributes:
        items: the list, which may have grown since.
        count: how many of them.
        where: what they belong to, for messages.
    """

    items: AppendOnly[Any]
    count: int
    where: str


def held(items: list[Any], where: str) -> Prefix | None:
    """The `Prefix` of an AppendOnly at its current length; None for other lists."""
    return Prefix(items, len(items), where) if isinstance(items, AppendOnly) else None


def unheld(note: object) -> Any:
    """A note with the rows of each `Prefix` in it, to continue a run without a checkpoint."""
    if isinstance(note, Prefix):
        return [to_plain(item, note.where) for item in note.items[: note.count]]
    return _within(note, unheld)


class RowFiles:
    """`RowFiles(new, path).placed(note)`: the note, with the rows in it written to files.

    Args:
        new: the folder that is written.
        path: where it will be.
    """

    def __init__(self, new: Path, path: Path) -> None:
        self._new, self._path, self._count = new, path, 0

    def placed(self, value: object) -> object:
        """The value for JSON: each `Prefix`, and rows of another checkpoint, become files."""
        if isinstance(value, Prefix):
            write = value.items._write  # pyright: ignore[reportPrivateUsage], for this module alone
            name = self._next()
            return {"rows": write(value.count, value.where, self._new / name, self._path / name)}
        if _has_rows(value) and "folder" in value["rows"]:
            return {"rows": self._taken_over(dict(value["rows"]))}
        return _within(value, self.placed)

    def _taken_over(self, about: dict[str, Any]) -> dict[str, Any]:
        name, folder = self._next(), place(about.pop("folder"), "folder")
        with opened(folder, about["file"]) as there:
            _link_or_copy(there / about["file"], self._new / name)
        return {**about, "file": name}

    def _next(self) -> str:
        self._count += 1
        return f"rows-{self._count}.jsonl"


def with_folder(note: object, folder: Path) -> object:
    """The note of a read manifest, with the folder of its rows, so it can be saved again."""
    if _has_rows(note):
        return {"rows": {**note["rows"], "folder": str(absolute(folder))}}
    return _within(note, lambda inner: with_folder(inner, folder))


def _has_rows(value: object) -> TypeGuard[dict[str, dict[str, Any]]]:
    """Whether the value is the manifest's entry for a list in a file."""
    if not isinstance(value, dict) or [*cast("Any", value)] != ["rows"]:
        return False
    about: Any = cast("Any", value)["rows"]
    return isinstance(about, dict) and {"file", "count", "bytes", "sha256"} <= {*cast("Any", about)}


def _within(value: object, change: Callable[[object], object]) -> object:
    if isinstance(value, dict):
        return {key: change(inner) for key, inner in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [change(inner) for inner in cast("list[Any]", value)]
    return value


def _link_or_copy(path: Path, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # no links in this file system, another disk, or too many of this file
        shutil.copyfile(path, new)


def read_rows(folder: Path, about: Mapping[str, Any]) -> list[Any]:
    """The items of a list in its own file, checked.

    Raises:
        CheckpointError: the file is gone or damaged.
    """
    try:
        if not _NAME.fullmatch(about["file"]):
            raise ValueError(f"{about['file']} is not a name of such a file")
        with opened(folder, about["file"]) as there:
            data = _beginning(there / about["file"], about["bytes"])
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise ValueError(f"the checksum of {about['file']} is another than when it was written")
        return [from_plain(json.loads(line)) for line in data.splitlines()]
    except Exception as error:  # whatever NumPy and base64 raise of what nobody has written so
        raise CheckpointError(
            f"{folder} cannot be resumed: the rows of its history cannot be read ({error}). Put "
            f"the file back (a later checkpoint of the run has it too), or take the weights alone: "
            f"`exp = solstice.checkpoint.load({str(folder)!r}, like=exp)`"
        ) from error


def _beginning(path: Path, size: int) -> bytes:
    if not path.is_file():
        raise ValueError(f"there is no {path.name} in it")
    with path.open("rb") as file:
        return file.read(size)
