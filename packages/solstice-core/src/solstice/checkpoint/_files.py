"""The files of a checkpoint, with checksums that prove them whole.

`arrays.safetensors` has the arrays, each under its path in the tree; `manifest.json` says what they
are. The manifest has a checksum of each array and of itself. Lists that only grow have files of
their own, see `_rows.py`, and so do arrays that several processes have, see `_orbax.py`.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal

import jax
import numpy as np

from solstice._errors import CheckpointError
from solstice._paths import check_regular
from solstice._schema import SchemaError, read
from solstice._stored import Stored, to_stored

ARRAYS, MANIFEST = "arrays.safetensors", "manifest.json"
FORMAT, VERSION = "solstice-checkpoint", 1

_BYTES_AT_A_TIME = 2**22

_PLAIN = {
    "bool": "BOOL",
    "bfloat16": "BF16",
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}
"""What every version of safetensors that we support reads back; the rest is kept as its bytes."""


def safetensors() -> ModuleType:
    """`safetensors.numpy`, imported where a checkpoint is used."""
    try:
        import safetensors.numpy as library
    except ImportError as error:
        raise ImportError(
            "checkpoints are stored as safetensors: `pip install safetensors`"
        ) from error
    return library


def write_arrays(path: Path, leaves: dict[str, Stored | jax.Array]) -> dict[str, Any]:
    """Writes a file of safetensors, one array after the other, and empties `leaves`.

    Its library has a copy of all arrays in memory while it writes.

    Returns:
        The entries of the leaves in the manifest, for `with_checksums`.
    """
    types = {name: _type_of(leaf) for name, leaf in leaves.items()}
    # Wide ones first, so that each is aligned.
    order = sorted(leaves, key=lambda name: (-types[name][0].itemsize, name))
    entries: dict[str, Any] = {}
    with path.open("wb") as file:
        file.write(_header({name: types[name] for name in order}))
        for name in order:
            stored = to_stored(name, leaves.pop(name))
            entries[name] = {**entry_of(stored), "place": (file.tell(), stored.array.nbytes)}
            file.write(_bytes_of(stored.array))
    return {name: entries[name] for name in types}


def with_checksums(path: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """The entries with the checksums of the arrays, which are read from the file.

    They take longer than to write the file, and training need not wait for them.
    """
    with path.open("rb") as file:
        return {name: _with_checksum(file, **entry) for name, entry in entries.items()}


def _with_checksum(file: BinaryIO, place: tuple[int, int], **entry: Any) -> dict[str, Any]:
    digest = _digest(entry["dtype"], entry["shape"])
    start, left = place
    file.seek(start)
    while left > 0 and (part := file.read(min(left, _BYTES_AT_A_TIME))):
        digest.update(part)
        left -= len(part)
    return {**entry, "sha256": digest.hexdigest()}


def _type_of(leaf: Stored | jax.Array) -> tuple[np.dtype[Any], tuple[int, ...]]:
    array = leaf.array if isinstance(leaf, Stored) else leaf
    return np.dtype(array.dtype), array.shape


def _header(types: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> bytes:
    """The beginning of a file of safetensors: the length of the rest of it, and JSON."""
    entries: dict[str, Any] = {}
    start = 0
    for name, (dtype, shape) in types.items():
        stop = start + dtype.itemsize * math.prod(shape)
        is_plain = dtype.name in _PLAIN
        entries[name] = {
            "dtype": _PLAIN[dtype.name] if is_plain else "U8",
            "shape": [*shape] if is_plain else [*shape, dtype.itemsize],
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def entry_of(stored: Stored) -> dict[str, Any]:
    """The entry of a leaf in the manifest, without its checksum."""
    return {
        "kind": stored.kind,
        "dtype": stored.array.dtype.name,
        "shape": list(stored.array.shape),
        **({} if stored.impl is None else {"impl": stored.impl}),
    }


def from_bytes(
    array: np.ndarray[Any, Any], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """An array of a file: of another dtype, it was written as bytes."""
    if array.dtype == dtype:
        return array
    return np.frombuffer(array.tobytes(), dtype).reshape(shape).copy()  # which may be written to


def checksum(array: np.ndarray[Any, Any]) -> str:
    """The SHA-256 of an array's bytes, dtype and shape."""
    digest = _digest(array.dtype.name, list(array.shape))
    digest.update(_bytes_of(array))
    return digest.hexdigest()


def _digest(dtype: str, shape: list[int]) -> Any:
    return hashlib.sha256(f"{dtype} {shape} ".encode())


def seal(manifest: dict[str, Any]) -> str:
    """The manifest as text, with a checksum of itself."""
    try:
        body = json.dumps(manifest, sort_keys=True, indent=1)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"note must hold what JSON takes, such as {{'epoch': 3}}: {error}"
        ) from error
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest()}) + "\n" + body + "\n"


@dataclass(frozen=True)
class Leaf:
    """The entry of an array in a manifest; see `Stored`.

    Attributes:
        sha256: its checksum. An array that several processes have may be without one.
        store: where it is if not in `arrays.safetensors`.
    """

    kind: Literal["array", "numpy", "key", "bool", "int", "float", "complex", "scalar"]
    dtype: str
    shape: list[int]
    sha256: str | None = None
    impl: str | None = None
    store: Literal["orbax"] | None = None

    def __post_init__(self) -> None:
        if self.store is None and self.sha256 is None:
            raise SchemaError("an array of the manifest has no 'sha256'")
        if self.store is not None and self.kind not in ("array", "key"):
            raise SchemaError(f"the manifest has a {self.kind} in {self.store}")


@dataclass(frozen=True)
class Manifest:
    """The required entries of a manifest.

    Attributes:
        leaves: by path, what each array is.
        described: by path, what is no array, in words.
        versions: of the packages.
        note: what was given to `save`.
        text: all of it, as JSON has it.
    """

    leaves: dict[str, Leaf]
    described: dict[str, str]
    versions: dict[str, str]
    note: dict[str, Any]
    text: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class _Format:
    format: str
    version: int


def read_manifest(path: Path) -> Manifest:
    """The checked manifest; a CheckpointError names the file and the entry."""
    found = _sealed(path)
    try:
        about = read(_Format, found, "the manifest")
        if about.format == FORMAT and about.version <= VERSION:
            return replace(read(Manifest, found, "the manifest"), text=found)
    except SchemaError as error:
        raise CheckpointError(f"{path} is not a manifest of Solstice: {error}") from error
    raise CheckpointError(
        f"{path} is of {about.format} {about.version}; this version of Solstice reads {FORMAT} up "
        f"to {VERSION}. Upgrade solstice-core"
    )


def _sealed(path: Path) -> object:
    """The content of the file, unchecked except for its checksum."""
    try:
        check_regular(path, "the manifest")
        text = path.read_bytes().decode()
        head, body = text.split("\n", 1)
        given = json.loads(head)["sha256"]
        # The head is compared as a whole, because its checksum covers only the body.
        whole = body.endswith("\n") and head == json.dumps({"sha256": given})
        if not whole or hashlib.sha256(body[:-1].encode()).hexdigest() != given:
            raise ValueError("its checksum is another")
        return json.loads(body)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} is not a checkpoint: it has no {path.name}{_within(path)}"
        ) from error
    except RecursionError:
        raise CheckpointError(f"{path} is damaged: it is nested too deeply") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _within(path: Path) -> str:
    """Advice if the folder without a manifest has checkpoints, as that of a `Checkpoint` does."""
    found = [m.parent for m in path.parent.glob(f"*/{path.name}") if m.parent.name[0] != "."]
    if not found:
        return ""
    newest = max(found, key=lambda folder: (len(folder.name), folder.name))  # step-9, step-10
    return f". It has checkpoints in it: give the path of one, such as {str(newest)!r}"
