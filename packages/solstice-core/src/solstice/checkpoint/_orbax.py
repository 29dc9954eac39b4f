"""Arrays over several processes, in the format of Orbax: each process writes its own shards."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import EllipsisType, ModuleType
from typing import Any, TypeAlias

import jax
import numpy as np

from solstice._errors import CheckpointError
from solstice.checkpoint._files import checksum

FOLDER = "arrays.orbax"
"""The folder within a checkpoint."""

_NAME = "arrays"

Wanted: TypeAlias = jax.ShapeDtypeStruct | np.ndarray[Any, Any]
"""An array to read: on the devices of its sharding, or all of it on the host."""


def orbax() -> ModuleType:
    """Version 1 of Orbax, imported where several processes save."""
    try:
        library = import_module("orbax.checkpoint.experimental.v1")
    except ImportError as error:
        raise ImportError(
            "several processes save arrays with Orbax: `pip install 'orbax-checkpoint>=0.12.8'`"
        ) from error
    if not hasattr(library.Context, "array"):
        raise ImportError("Orbax is too old: `pip install --upgrade 'orbax-checkpoint>=0.12.8'`")
    return library


def check_installed() -> None:
    """Raises an ImportError without Orbax."""
    orbax()


def begin(checkpoint: Path, arrays: Mapping[str, jax.Array]) -> Callable[[], None]:
    """Copies the shards of this process to the host; the result waits until all are on the disk.

    All processes call it, in the main thread. The arrays may be donated afterwards.
    """
    library, folder = orbax(), _folder(checkpoint)
    context = library.Context()
    # Of copies, the first is written, and it has the checksum in the manifest.
    context.array.saving.use_replica_parallel = False
    with _named(folder, "could not be written"), context:
        response = library.save_checkpointables_async(folder, {_NAME: _keyed(arrays)})

    def wait() -> None:
        with _named(folder, "could not be written"):
            response.result()

    return wait


def _folder(checkpoint: Path) -> Path:
    return checkpoint.absolute() / FOLDER  # Orbax refuses relative paths


def checksums(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """By name, the checksums of arrays of which this process writes all; it writes parts of others.

    A copy of a split array would need the memory of all of it.
    """
    found: dict[str, str] = {}
    for name, array in arrays.items():
        first = [shard.data for shard in array.addressable_shards if shard.replica_id == 0]
        if array.is_fully_replicated and first:
            found[name] = checksum(np.asarray(first[0]))
    return found


def load(
    checkpoint: Path, names: list[str], wanted: Mapping[str, Wanted]
) -> dict[str, jax.Array | np.ndarray[Any, Any]]:
    """The wanted ones of the arrays with these names. All processes call it."""
    everything: dict[str, Wanted | EllipsisType] = {name: wanted.get(name, ...) for name in names}
    library, folder = orbax(), _folder(checkpoint)
    with _named(folder, "is damaged"):
        loaded = library.load_checkpointables(folder, {_NAME: _keyed(everything)})[_NAME]
        return {name: loaded[_key(name)] for name in wanted}


@contextmanager
def _named(folder: Path, what: str) -> Generator[None, None, None]:
    """Within, an error of Orbax or TensorStore, in their own classes, names the folder."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{folder} {what}: {error!s:.500}") from error


def _keyed(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {_key(name): array for name, array in arrays.items()}


def _key(name: str) -> str:
    """The name of an array in Orbax: a tree that is one array has the path ""."""
    return name or "."
