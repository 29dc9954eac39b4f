"""Loading: read a tree into the structure of another."""

import fnmatch
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from solstice import _tree
from solstice._arguments import mapping, text_or_none
from solstice._errors import CheckpointError
from solstice._numbers import dtype_of
from solstice._paths import check_regular, local_path
from solstice._stored import (
    Stored,
    described,
    from_stored,
    is_consistent,
    is_stored,
    kind_of,
    modules,
    stored_leaves,
)
from solstice.checkpoint._files import (
    ARRAYS,
    MANIFEST,
    Leaf,
    Manifest,
    checksum,
    from_bytes,
    read_manifest,
    safetensors,
)
from solstice.checkpoint._places import newest
from solstice.checkpoint._rows import with_folder

_T = TypeVar("_T")


def load(
    path: str | PathLike[str],
    *,
    like: _T,
    only: str | None = None,
    rename: Mapping[str, str] | None = None,
) -> _T:
    """`exp = solstice.checkpoint.load("runs/best", like=exp)`: read a tree, bit for bit.

    Args:
        path: the folder that `save` wrote.
        like: a tree of the same structure, such as a new Experiment that is set up, or what
            `jax.eval_shape` gives. Functions and static fields are taken from it, and must be those
            that were saved. An array gets the device and the sharding of its counterpart.
        only: a pattern of paths, such as "*.params*"; what does not match is taken from `like`.
        rename: saved paths by the beginnings that have changed since: `{".net": ".learner"}` loads
            what was saved at ".net.params" into ".learner.params".

    Returns:
        A tree of the structure of `like`, whose arrays may be donated.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, it is of a newer version, or of
            another tree; the message names the first path that differs.
        ValueError: `path` is a URL.
    """
    only, rename = text_or_none("only", only, "*.params*"), _renames(rename)
    return _load(_found(path), like, only, rename)[0]


def load_renamed(path: Path, like: _T) -> tuple[_T, list[str]]:
    """`load`, also if a class was renamed; returns these classes in words.

    What such a class computes is for the caller to compare.
    """
    return _load(_found(path), like, are_names_alike=True)


def _load(
    folder: Path,
    like: _T,
    only: str | None = None,
    rename: Mapping[str, str] | None = None,
    *,
    are_names_alike: bool = False,
) -> tuple[_T, list[str]]:
    rename, others = rename or {}, list[str]()
    about = read_manifest(folder / MANIFEST)
    stored = _renamed(_read(folder, about), rename)
    leaves, structure = _tree.flatten(like)
    paths = [name for name, _ in _tree.leaves_by_path(like)]
    chosen = [
        name
        for name, leaf in zip(paths, leaves, strict=True)
        # `fnmatch.fnmatch` would ignore the case on Windows.
        if is_stored(leaf) and (only is None or fnmatch.fnmatchcase(name, only))
    ]
    if only is None:
        saved = _renamed(about.described, rename)
        others = _check_words(folder, saved, described(like), modules(like), are_names_alike)
        _check_paths(folder, set(stored), set(stored_leaves(like)))
    elif not chosen:
        raise CheckpointError(f"only={only!r} matches no path; there are {_some(paths)}")
    wanted = set(chosen)
    _check_twins(folder, wanted, set(stored), set(stored_leaves(like)))
    loaded = [
        _leaf(folder, name, stored, leaf) if name in wanted else leaf
        for name, leaf in zip(paths, leaves, strict=True)
    ]
    return _tree.unflatten(structure, loaded), others


def manifest(path: str | PathLike[str]) -> dict[str, Any]:
    """`solstice.checkpoint.manifest("runs/best")["note"]`: the manifest of a checkpoint.

    Returns:
        "leaves", by path, each with its kind, dtype, shape and checksum; "note", as it was given;
        "versions" of the packages; "format" and "version" of the format.

    Raises:
        CheckpointError: there is no checkpoint, or the manifest is damaged.
    """
    folder = _found(path)
    about = read_manifest(folder / MANIFEST).text
    try:
        return {**about, "note": with_folder(about.get("note"), folder)}
    except RecursionError:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: it is nested too deeply") from None


def read(path: str | PathLike[str]) -> dict[str, Stored]:
    """All leaves of a checkpoint by path, checked."""
    folder = _found(path)
    return _read(folder, read_manifest(folder / MANIFEST))


def _found(path: str | PathLike[str]) -> Path:
    """The folder of a checkpoint."""
    folder = local_path(path, "path")
    try:
        return newest(folder)
    except OSError as error:  # such as of a name that is too long
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def _renames(rename: object) -> dict[str, str]:
    found = mapping("rename", rename, '{".net": ".learner"}')
    for old, new in found.items():
        if not isinstance(new, str):
            raise TypeError(f"rename[{old!r}] must be a path, such as '.learner'; it is {new!r}")
    return found


def _read(folder: Path, manifest: Manifest) -> dict[str, Stored]:
    try:
        check_regular(folder / ARRAYS, "the file of arrays")
        arrays = safetensors().load_file(folder / ARRAYS)
    except ImportError:
        raise
    except Exception as error:  # of safetensors, in its own class
        raise CheckpointError(f"{folder / ARRAYS} is damaged: {error}") from error
    leaves = manifest.leaves
    if set(arrays) != set(leaves):
        raise CheckpointError(f"{folder / ARRAYS} is damaged: its manifest has other arrays")
    return {name: _checked(folder, name, arrays[name], leaves[name]) for name in leaves}


def _checked(folder: Path, name: str, array: np.ndarray[Any, Any], about: Leaf) -> Stored:
    try:
        dtype = dtype_of(about.dtype)
        whole = from_bytes(array, dtype, tuple(about.shape))
        fits = list(whole.shape) == about.shape and checksum(whole) == about.sha256
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{folder / ARRAYS} is damaged at `{name}`: {error}") from error
    if not fits:
        raise CheckpointError(
            f"{folder / ARRAYS} is damaged at `{name}`: its checksum is another than when it was "
            f"written. Take an earlier checkpoint"
        )
    stored = Stored(about.kind, whole, about.impl)
    if not is_consistent(stored):
        raise CheckpointError(
            f"{folder / MANIFEST} says that `{name}` is of kind {about.kind!r}, which it cannot be "
            f"as {about.dtype}{about.shape} with impl={about.impl!r}"
        )
    return stored


def _renamed(saved: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    def new_name(name: str) -> str:
        for old, new in rename.items():
            if name.startswith(old):
                return new + name[len(old) :]
        return name

    found: dict[str, Any] = {}
    for name, value in saved.items():
        if new_name(name) in found:
            raise CheckpointError(
                f"rename={dict(rename)} gives two saved paths the name `{new_name(name)}`, one of "
                f"which is `{name}`"
            )
        found[new_name(name)] = value
    return found


def _check_words(
    folder: Path,
    saved: dict[str, str],
    mine: dict[str, str],
    classes: set[str],
    are_names_alike: bool,
) -> list[str]:
    """Compares the descriptions; returns the classes that differ in name only."""
    paths = list(dict.fromkeys([*mine, *saved]))
    differ = [path for path in paths if not _same_words(saved.get(path), mine.get(path))]
    real = [p for p in differ if not _is_renamed(saved.get(p), mine.get(p), p in classes)]
    found = {
        path: f"`{path or '.'}` was {saved.get(path, 'numbers or nothing')!s:.200} when it was "
        f"saved, and is {mine.get(path, 'numbers or nothing')!s:.200}"
        for path in differ
    }
    if real:
        is_empty = mine.get(real[0]) == "None"  # as in an Experiment before its first batch
        unless = " (if the Experiment has no values yet: `like=exp.setup(batch)`)" * is_empty
        raise CheckpointError(
            f"{folder} is of another tree: {found[real[0]]} in the tree to load it into. Make "
            f"`like` as it was{unless}, or load a part: `only='*.params*'`"
        )
    if differ and not are_names_alike:
        raise CheckpointError(
            f"{folder} is of another tree: {found[differ[0]]} in the tree to load it into. Where "
            f"that is the same class under another name, write `only='*'`"
        )
    return [f"{text} now, a class of another name" for text in found.values()]


def _is_renamed(saved: str | None, mine: str | None, is_class: bool) -> bool:
    """Whether all but the name of a class is the same: a module, or `Config(width=3)`."""
    if saved is None or mine is None:
        return False
    rests = [_NAME.sub("", words, count=1) for words in (saved, mine)]
    return rests[0] == rests[1] and (is_class or rests[0].startswith("("))


def _same_words(one: str | None, other: str | None) -> bool:
    """Whether both name the same; what a script defines is in `__main__` while it runs."""
    if one is None or other is None or one == other:
        return one == other
    pairs = [(one, other), (other, one)]
    return any(a.startswith(_MAIN) and b.endswith(f".{a[len(_MAIN) :]}") for a, b in pairs)


def _rename_hint(saved: list[str], mine: list[str]) -> str:
    """The line to write, if there are paths on both sides: one may be the other, renamed."""
    if not (saved and mine):
        return "Give a tree of the same structure"
    return f"If a path was renamed, write `rename={{{saved[0]!r}: {mine[0]!r}}}`"


def _check_paths(folder: Path, saved: set[str], mine: set[str]) -> None:
    for missing, where in [(mine - saved, "the checkpoint"), (saved - mine, "the tree `like`")]:
        if missing:
            raise CheckpointError(
                f"{folder} is of another tree: {where} has nothing at {_some(sorted(missing))}. "
                f"{_rename_hint(sorted(saved - mine), sorted(mine - saved))}"
            )


def _check_twins(folder: Path, wanted: set[str], saved: set[str], mine: set[str]) -> None:
    """Where leaves have one path but for a number, it must count as many here as there."""
    for name in sorted(wanted):
        twin = f"{name}#2"
        if (twin in saved) != (twin in mine):
            raise CheckpointError(
                f"{folder} is of another tree: several leaves have the path `{name}` in "
                f"{'the checkpoint' if twin in saved else 'the tree `like`'} alone"
            )


def _leaf(folder: Path, name: str, stored: Mapping[str, Stored], like: object) -> object:
    if name not in stored:
        raise CheckpointError(f"{folder} has nothing at `{name}`; it has {_some(sorted(stored))}")
    leaf = stored[name]
    kind = kind_of(like)
    was, now = _type_of(leaf), _type_of_like(like, kind)
    if was != now:
        raise CheckpointError(
            f"{folder} is of another tree: `{name}` was {was} when it was saved, and is {now} in "
            f"the tree to load it into"
        )
    try:
        return from_stored(leaf, like)
    except (TypeError, ValueError) as error:  # of JAX, such as for a key of another length
        raise CheckpointError(f"{folder} has no {was} at `{name}`: {error}") from error


def _type_of(leaf: Stored) -> str:
    if leaf.kind == "key":
        return f"a key of {leaf.impl}{list(leaf.array.shape[:-1])}"
    if leaf.kind in ("array", "numpy", "scalar"):
        return f"{_KINDS[leaf.kind]} {leaf.array.dtype.name}{list(leaf.array.shape)}"
    return f"a Python {leaf.kind}"


def _type_of_like(like: Any, kind: str) -> str:
    if kind == "key":
        name = str(like.dtype).removeprefix("key<").removesuffix(">")
        impl = _IMPLEMENTATIONS.get(name, name)
        return f"a key of {impl}{list(like.shape)}"
    if kind in _KINDS:
        return f"{_KINDS[kind]} {np.dtype(like.dtype).name}{list(like.shape)}"
    return f"a Python {kind}"


_MAIN = "__main__."
_NAME = re.compile(r"^[\w.<>]+")
_KINDS = {"array": "a JAX", "numpy": "a NumPy", "scalar": "a NumPy scalar"}
# A dtype has the short name of an implementation: `key<fry>`.
_IMPLEMENTATIONS = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}


def _some(paths: list[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths[:5]) + (" ..." if len(paths) > 5 else "")
