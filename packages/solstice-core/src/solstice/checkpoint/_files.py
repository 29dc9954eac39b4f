"""The two files of a checkpoint, and what proves that they are whole.

`arrays.safetensors` has the arrays, each under its path in the tree; `manifest.json` says what they
are. The manifest has a checksum of each array and of itself. Lists that only grow have files of
their own, see `_rows.py`.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from solstice._paths import check_folder
from solstice.checkpoint._errors import CheckpointError

ARRAYS, MANIFEST = "arrays.safetensors", "manifest.json"
FORMAT, VERSION = "solstice-checkpoint", 1

_PLAIN = frozenset(
    ["bool", "bfloat16", "float16", "float32", "float64"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)
"""What every version of safetensors that we support reads back; the rest is kept as its bytes."""


def safetensors() -> Any:
    """`safetensors.numpy`, imported where a checkpoint is used."""
    try:
        import safetensors.numpy as library
    except ImportError as error:
        raise ImportError(
            "checkpoints are kept in safetensors: `pip install 'solstice-core[checkpoint]'`"
        ) from error
    return library


def check_store(folder: Path, who: str) -> None:
    """That checkpoints can be written into a folder, for who says so before a run.

    Raises:
        CheckpointError: a file is in the way, or it must not be written to.
        ImportError: safetensors is not installed.
    """
    safetensors()
    try:
        check_folder(folder, who)
    except OSError as error:
        raise CheckpointError(str(error)) from error


def as_bytes(array: Any) -> Any:
    """An array as safetensors takes it: contiguous, and of a dtype that it knows."""
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    if array.dtype.name in _PLAIN:
        return array
    return np.frombuffer(array.tobytes(), np.uint8).reshape(*array.shape, array.dtype.itemsize)


def from_bytes(array: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    """The array of `as_bytes`."""
    if array.dtype == dtype:
        return array
    return np.frombuffer(array.tobytes(), dtype).reshape(shape).copy()  # which may be written to


def checksum(array: Any) -> str:
    """The SHA-256 of an array's bytes, dtype and shape."""
    digest = hashlib.sha256(f"{array.dtype.name} {list(array.shape)} ".encode())
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    digest.update(memoryview(flat))
    return digest.hexdigest()


def seal(manifest: dict[str, Any], default: Callable[[Any], Any] | None = None) -> str:
    """The manifest as text, with a checksum of itself; `default` is that of `json.dumps`."""
    body = json.dumps(manifest, sort_keys=True, indent=1, default=default)
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest()}) + "\n" + body + "\n"


def unseal(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, or a CheckpointError."""
    try:
        text = path.read_bytes().decode()
        head, body = text.split("\n", 1)
        given = json.loads(head)["sha256"]
        whole = body.endswith("\n") and head == json.dumps({"sha256": given})
        if not whole or hashlib.sha256(body[:-1].encode()).hexdigest() != given:
            raise ValueError("its checksum is another")
        manifest = json.loads(body)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} is no checkpoint: it has no {path.name}") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if manifest["format"] != FORMAT or manifest["version"] > VERSION:
        raise CheckpointError(
            f"{path} is of {manifest['format']} {manifest['version']}; this version of Solstice "
            f"reads {FORMAT} up to {VERSION}. Upgrade solstice-core"
        )
    return manifest
