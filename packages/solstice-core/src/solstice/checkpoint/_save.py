"""Saving: write a tree into a hidden folder, then rename it."""

import os
import platform
import shutil
from collections import ChainMap
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any, cast

import jax

from solstice._arguments import check_alive, mapping
from solstice._errors import CheckpointError
from solstice._stored import (
    Stored,
    described,
    kind_of,
    spans_processes,
    stored_leaves,
    stored_or_array,
    to_stored,
)
from solstice._tree import is_key
from solstice.checkpoint import _bucket, _orbax
from solstice.checkpoint._files import (
    ARRAYS,
    FORMAT,
    MANIFEST,
    VERSION,
    checksum,
    entry_of,
    seal,
    with_checksums,
    write_arrays,
)
from solstice.checkpoint._folder import check_libraries, check_replaceable, settle
from solstice.checkpoint._peers import Peers
from solstice.checkpoint._places import finish_renaming, free_beside, real
from solstice.checkpoint._rows import RowFiles

_TOLD = ["jax", "jaxlib", "numpy", "equinox", "flax", "dm-haiku", "optax", "solstice-core"]


def save(path: str | PathLike[str], tree: object, *, note: Mapping[str, Any] | None = None) -> Path:
    """`solstice.checkpoint.save("runs/best", exp)`: write a tree, an Experiment for instance.

    The folder `path` then has the arrays in `arrays.safetensors`, by their paths in the tree, and a
    `manifest.json`. It is written under another name, brought to the disk, and renamed: if the
    process dies meanwhile, what was at `path` before is still there. Functions and static fields
    are not saved, but described, so `load` can compare them.

    Several processes of `jax.distributed` call it together, with one path in a folder that all of
    them see. Each writes its parts of the arrays that lie on devices of several processes, in the
    format of Orbax; the first one writes the rest. These arrays have a checksum only if each
    process has all of them, as parameters that are not split do.

    Args:
        path: a folder, which is replaced if it is a checkpoint or empty. It may be in a bucket,
            such as "gs://bucket/best" or "s3://bucket/best": then it is written to the temporary
            folder of this machine and uploaded, the manifest last. One process at a time saves
            there.
        tree: a pytree of JAX and NumPy arrays, typed PRNG keys, Python and NumPy numbers, and None.
        note: what JSON takes, kept in the manifest; or the `note` of a `solstice.Snapshot` or of
            another checkpoint, whose `AppendOnly` lists go to files beside it.

    Returns:
        The folder; in a bucket, an `etils.epath.Path`.

    Raises:
        CheckpointError: `path` exists and is not a checkpoint, a leaf does not hold numbers, or
            writing fails. In several processes: another one failed or did not come, or their
            paths, trees or numbers differ.
        ValueError: `path` is another URL, or an array has been deleted.
        ImportError: safetensors is not installed, or Orbax in several processes, or for a bucket
            the extra `cloud`.
        TypeError: `note` holds what JSON does not take.
    """
    return begin(path, tree, note=note)()


def begin(
    path: str | PathLike[str], tree: object, *, note: Mapping[str, Any] | None = None
) -> Callable[[], Path]:
    """`finish = solstice.checkpoint.begin("runs/best", exp)`, then `finish()`: `save` in two parts.

    The first part copies the arrays to a file, one after the other, so that they may be deleted or
    donated afterwards. The second one, `finish()`, brings the file to the disk and renames the
    folder, or uploads it. It may run in a thread. Without it, `sweep` removes the rest. Several
    processes call `begin` in their main threads, and all call `finish`.

    Args:
        path: as in `save`.
        tree: as in `save`.
        note: as in `save`.

    Returns:
        A function that completes the checkpoint and returns the folder.

    Raises:
        CheckpointError, ValueError, ImportError: as in `save`.
        TypeError: from `finish()`, if `note` holds what JSON does not take.
    """
    place = _bucket.place(path, "path")
    return _begin_copy(place, tree, note) if _bucket.is_url(place) else _begin(place, tree, note)


def _begin_copy(url: Path, tree: object, note: object) -> Callable[[], Path]:
    """Begins a checkpoint in a bucket: a local one, to upload."""
    _bucket.check_replaceable(url)
    copy = _bucket.Copy(url)
    with copy.named():
        finish = _begin(copy.folder, tree, note)

    def upload() -> Path:
        with copy.named():
            finish()
        return copy.upload()

    return upload


def _begin(path: Path, tree: object, note: object) -> Callable[[], Path]:
    peers = Peers(f"{path} is saved")
    save = peers.each(lambda: _Save.of(path, tree, note, peers))
    if not peers.is_alone:
        peers.check_same(peers.each(save.in_words))
    new = Path(peers.first(save.make_folder))
    with save.removed_on_error(new):
        sums = dict(ChainMap(*peers.together(lambda: save.checksums(new))))
        return peers.each(lambda: save.begin(new, sums))


@dataclass(frozen=True)
class _Save:
    """One checkpoint that is written.

    Attributes:
        path: the path that was given, for messages.
        place: the folder, if the path is a link.
        note: what was given to `save`.
        words: what is not numbers, in words.
        peers: the processes that write it.
        whole: the leaves that the first process writes.
        split: the arrays of which each process writes its part.
        entries: the entries of these in the manifest.
    """

    path: Path
    place: Path
    note: dict[str, Any]
    words: dict[str, str]
    peers: Peers
    whole: dict[str, Stored | jax.Array] = field(default_factory=dict[str, "Stored | jax.Array"])
    split: dict[str, jax.Array] = field(default_factory=dict[str, jax.Array])
    entries: dict[str, Any] = field(default_factory=dict[str, Any])

    @staticmethod
    def of(path: Path, tree: object, note: object, peers: Peers) -> "_Save":
        """What is saved, checked."""
        given = mapping("note", note, '{"epoch": 3}')
        save = _Save(path, real(path), given, described(tree), peers)
        for name, leaf in stored_leaves(tree).items():
            save._add(name, leaf)
        check_libraries()
        return save

    def _add(self, name: str, leaf: Any) -> None:
        if not spans_processes(leaf):
            self.whole[name] = stored_or_array(name, leaf)
            return
        check_alive(f"`{name}`", leaf)
        impl = str(jax.random.key_impl(leaf)) if is_key(leaf) else None
        self.split[name] = jax.random.key_data(leaf) if is_key(leaf) else leaf
        about = entry_of(Stored(kind_of(leaf), cast("Any", self.split[name]), impl))
        self.entries[name] = {**about, "store": "orbax"}

    def in_words(self) -> dict[str, str]:
        """All in which the processes must agree: each has numbers, and those of one are written."""
        return {
            "the folder": str(self.place),
            **{f"`{path}`": words for path, words in self.words.items()},
            **{f"`{name}`": str(about) for name, about in self.entries.items()},
            **{f"`{name}`": _content(name, leaf) for name, leaf in self.whole.items()},
        }

    def make_folder(self) -> str:
        """Makes the hidden folder beside the path, and cleans up after a process that died here."""
        with _named(self.path):
            check_replaceable(self.path)
            self.place.parent.mkdir(parents=True, exist_ok=True)
            settle(self.place)
            new = free_beside(self.place, "new")
            new.mkdir()
        return str(new)

    def checksums(self, new: Path) -> dict[str, str]:
        """Those of the arrays that only this process writes; see `_orbax.checksums`."""
        if not new.is_dir():
            raise CheckpointError(
                f"process 0 has made {new}, and it is not here: several processes save into a "
                f"folder that all of them share"
            )
        return _orbax.checksums(self.split)

    def begin(self, new: Path, sums: Mapping[str, str]) -> Callable[[], Path]:
        """Copies the arrays to files, or to the host; the result completes the checkpoint."""
        with _named(self.path):
            # All begin at once, before the first one writes.
            wait = _orbax.begin(new, self.split) if self.split else _nothing
            self.split.clear()
            file = write_arrays(new / ARRAYS, self.whole) if self.peers.is_first else {}
            self.whole.clear()
        for name, digest in sums.items():
            self.entries[name]["sha256"] = digest
        return partial(self._finish, new, wait, file)

    def _finish(self, new: Path, wait: Callable[[], object], file: dict[str, Any]) -> Path:
        with self.removed_on_error(new), _named(self.path):
            self.peers.each(wait)
            self.peers.first(lambda: self._complete(new, file))
        return self.path

    def _complete(self, new: Path, file: dict[str, Any]) -> None:
        """Completes the hidden folder beside the path, and renames it."""
        old = free_beside(self.place, "old")
        try:
            # On the disk before the manifest names them.
            placed = RowFiles(new, self.place).placed(self.note)
            leaves = {**with_checksums(new / ARRAYS, file), **self.entries}
            about = {**_manifest(self.words), "leaves": leaves, "note": placed}
            (new / MANIFEST).write_text(seal(about))
            for name in (ARRAYS, MANIFEST):
                _to_disk(new / name)
            _to_disk(new)
            if self.place.exists():
                self.place.rename(old)  # a rename cannot replace a folder with files in it
            new.rename(self.place)
            _to_disk(self.place.parent)  # else a power failure may undo the rename
        finally:
            shutil.rmtree(new, ignore_errors=True)
            finish_renaming(self.place)
        shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def removed_on_error(self, folder: Path) -> Generator[None, None, None]:
        """Removes the hidden folder if an error comes from within."""
        try:
            yield
        except BaseException:
            if self.peers.is_first:
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _content(name: str, leaf: Stored | jax.Array) -> str:
    stored = to_stored(name, leaf)
    return f"{entry_of(stored)} with the checksum {checksum(stored.array)}"


def _nothing() -> None:
    """Nothing to wait for."""


@contextmanager
def _named(path: Path) -> Generator[None, None, None]:
    """Within, an error of the disk becomes a CheckpointError that names the checkpoint."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} could not be written: {error}") from error


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _manifest(words: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "described": dict(words),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """`solstice.checkpoint.versions()["jax"]`: the package versions that a checkpoint records."""
    found = {"python": platform.python_version()}
    for name in _TOLD:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
