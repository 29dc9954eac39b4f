"""Loading: read a tree into the structure of another."""

import fnmatch
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from solstice import _tree
from solstice._arguments import mapping, text_or_none
from solstice._errors import CheckpointError
from solstice._stored import (
    Stored,
    described,
    from_stored,
    is_stored,
    kind_of,
    modules,
    stored_leaves,
)
from solstice.checkpoint._bucket import is_url, opened, place
from solstice.checkpoint._files import MANIFEST, Leaf, read_manifest
from solstice.checkpoint._leaves import read_leaves
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

    A checkpoint of several processes can be read by any number of them. All call it together, if
    they are several: each reads the parts of the arrays that its devices hold.

    Args:
        path: the folder that `save` wrote. From a bucket, it is first copied to the temporary
            folder of this machine.
        like: a tree of the same structure, such as a new Experiment that is set up, or what
            `jax.eval_shape` gives. Functions and static fields are taken from it, and must be those
            that were saved. An array gets the device and the sharding of its counterpart,
            whatever they were when it was saved.
        only: a pattern of paths, such as "*.params*"; what does not match is taken from `like`.
        rename: saved paths by the beginnings that have changed since: `{".net": ".learner"}` loads
            what was saved at ".net.params" into ".learner.params".

    Returns:
        A tree of the structure of `like`, whose arrays may be donated.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, it is of a newer version, or of
            another tree; the message names the first path that differs.
        ValueError: `path` is a URL other than of "gs://" or "s3://".
        ImportError: several processes have saved it, and Orbax is not installed; or it is in a
            bucket, and the extra `cloud` is not.
    """
    only, rename = text_or_none("only", only, "*.params*"), _renames(rename)
    with _found(path) as folder:
        return _load(folder, like, only, rename)[0]


def load_renamed(path: Path, like: _T, *, in_any_shape: bool = False) -> tuple[_T, list[str]]:
    """`load`, also if a class was renamed; returns these classes in words.

    What such a class computes is for the caller to compare.

    Args:
        path: the folder.
        like: as in `load`.
        in_any_shape: whether arrays may have other shapes than in `like`. They then lie on the
            default device.
    """
    with _found(path) as folder:
        return _load(folder, like, are_names_alike=True, in_any_shape=in_any_shape)


def _load(
    folder: Path,
    like: _T,
    only: str | None = None,
    rename: Mapping[str, str] | None = None,
    *,
    are_names_alike: bool = False,
    in_any_shape: bool = False,
) -> tuple[_T, list[str]]:
    rename, others = rename or {}, list[str]()
    about = read_manifest(folder / MANIFEST)
    saved = _renamed({name: name for name in about.leaves}, rename)
    leaves, structure = _tree.flatten(like)
    paths = [name for name, _ in _tree.leaves_by_path(like)]
    chosen = {
        name: leaf
        for name, leaf in zip(paths, leaves, strict=True)
        # `fnmatch.fnmatch` would ignore the case on Windows.
        if is_stored(leaf) and (only is None or fnmatch.fnmatchcase(name, only))
    }
    if only is None:
        words = _renamed(about.described, rename)
        others = _check_words(folder, words, described(like), modules(like), are_names_alike)
        _check_paths(folder, set(saved), set(stored_leaves(like)))
    elif not chosen:
        raise CheckpointError(f"only={only!r} matches no path; there are {_some(paths)}")
    _check_twins(folder, set(chosen), set(saved), set(stored_leaves(like)))
    there = {new: about.leaves[old] for new, old in saved.items()}
    if in_any_shape:
        chosen = {name: _in_shape(leaf, there[name]) for name, leaf in chosen.items()}
    for name, leaf in chosen.items():
        _check_type(folder, name, there, leaf)
    stored = read_leaves(folder, about, {saved[name]: leaf for name, leaf in chosen.items()})
    loaded = [
        _leaf(folder, name, stored[saved[name]], chosen[name]) if name in chosen else leaf
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
    with _found(path, MANIFEST) as folder:
        about = read_manifest(folder / MANIFEST).text
        where = place(path, "path")
        try:
            note = with_folder(about.get("note"), where if is_url(where) else folder)
        except RecursionError:
            raise CheckpointError(
                f"{folder / MANIFEST} is damaged: it is nested too deeply"
            ) from None
    return {**about, "note": note}


def read(path: str | PathLike[str]) -> dict[str, Stored]:
    """All leaves of a checkpoint by path, checked."""
    with _found(path) as folder:
        about = read_manifest(folder / MANIFEST)
        return read_leaves(folder, about, dict.fromkeys(about.leaves))


@contextmanager
def _found(path: str | PathLike[str], pattern: str = "*") -> Generator[Path, None, None]:
    """The folder of a checkpoint."""
    where = place(path, "path")
    try:
        with opened(where, pattern) as folder:
            yield folder
    except OSError as error:  # such as of a name that is too long
        raise CheckpointError(f"{where} cannot be read: {error}") from error


def _renames(rename: object) -> dict[str, str]:
    found = mapping("rename", rename, '{".net": ".learner"}')
    for old, new in found.items():
        if not isinstance(new, str):
            raise TypeError(f"rename[{old!r}] must be a path, such as '.learner'; it is {new!r}")
    return found


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


def _in_shape(like: Any, saved: Leaf) -> Any:
    """The counterpart of an array in the shape in which it was saved."""
    if kind_of(like) not in ("array", "key"):
        return like
    shape = tuple(saved.shape[:-1] if saved.kind == "key" else saved.shape)
    return like if shape == like.shape else jax.ShapeDtypeStruct(shape, like.dtype)


def _check_type(folder: Path, name: str, saved: Mapping[str, Leaf], like: object) -> None:
    if name not in saved:
        raise CheckpointError(f"{folder} has nothing at `{name}`; it has {_some(sorted(saved))}")
    was, now = _type_of(saved[name]), _type_of_like(like, kind_of(like))
    if was != now:
        raise CheckpointError(
            f"{folder} is of another tree: `{name}` was {was} when it was saved, and is {now} in "
            f"the tree to load it into"
        )


def _leaf(folder: Path, name: str, leaf: Stored, like: object) -> object:
    try:
        return from_stored(leaf, like)
    except (TypeError, ValueError) as error:  # of JAX, such as for a key of another length
        raise CheckpointError(
            f"{folder} has no {_type_of_like(like, kind_of(like))} at `{name}`: {error}"
        ) from error


def _type_of(leaf: Leaf) -> str:
    if leaf.kind == "key":
        return f"a key of {leaf.impl}{leaf.shape[:-1]}"
    if leaf.kind in ("array", "numpy", "scalar"):
        return f"{_KINDS[leaf.kind]} {leaf.dtype}{leaf.shape}"
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
