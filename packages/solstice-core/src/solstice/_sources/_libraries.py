"""Data sets of other libraries, recognised by the module of their type, without an import."""

import inspect
from collections.abc import Iterator
from typing import Any

from solstice._types import Batch

_LIBRARIES = ("tensorflow_datasets", "tensorflow", "grain", "torchdata", "torch", "datasets")
"""Libraries with special rules. A type that derives from two counts as the first."""


def library_of(data: object) -> str | None:
    """The library of a data set, such as "torch" for a DataLoader; None if it is unknown."""
    roots = {kind.__module__.partition(".")[0] for kind in type(data).__mro__}
    return next((name for name in _LIBRARIES if name in roots), None)


def how_to_batch(data: object, name: str) -> str | None:
    """The line to write for a data set of single examples; None if it gives batches."""
    library = library_of(data)
    if library == "datasets":
        return f"`batch_size=32`, or `{name}=lambda: data.with_format('numpy').iter(32)`"
    if library == "torch" and not hasattr(data, "batch_sampler") and hasattr(data, "__getitem__"):
        return f"`{name}=torch.utils.data.DataLoader({name}, batch_size=32, shuffle=True)`"
    if library == "tensorflow_datasets" and not hasattr(data, "__iter__"):
        return f"`{name}=grain.MapDataset.source({name}).shuffle(seed=0).batch(32)`"
    return None


def in_batches(data: Any, batch_size: int, *, shuffle: bool) -> Any:
    """A Hugging Face data set in batches; None for other data sets."""
    if library_of(data) != "datasets":
        return None
    if hasattr(data, "__len__"):
        return _Rows(data.with_format("numpy"), batch_size, shuffle)
    return _Stream(data.with_format("numpy"), batch_size)


def is_random_access(data: object) -> bool:
    """Whether `data[17]` is batch 17, although the data set is also iterable."""
    return isinstance(data, _Rows)


def is_keras(data: Any) -> bool:
    """Whether it is like a Keras `PyDataset`: `data[17]` is a batch, and it has `on_epoch_end`.

    Those of Keras 2 are also iterable, some of them without end.
    """
    if not callable(getattr(data, "on_epoch_end", None)) or not hasattr(data, "__getitem__"):
        return False
    try:
        inspect.signature(data.on_epoch_end).bind()
    except TypeError:  # it takes an argument, like the hook of a callback
        return False
    return hasattr(data, "__len__")


def resumes(data: object) -> str:
    """How exactly a run can resume within an epoch, in words."""
    library = library_of(data)
    if library == "grain":
        return "exactly, by the state of its iterator"
    return "exactly if it gives the same batches again, which are read again up to that point"


class _Rows:
    """A Hugging Face `Dataset` in batches; with `shuffle`, each epoch has another order."""

    def __init__(self, data: Any, batch_size: int, shuffle: bool) -> None:
        self._data = self._ordered = data
        self._batch_size = batch_size
        self._shuffle = shuffle
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose order the next pass has."""
        if self._shuffle:
            # By default, each epoch would write its order to a file in the cache.
            self._ordered = self._data.shuffle(
                seed=epoch, keep_in_memory=True, load_from_cache_file=False
            )

    def __len__(self) -> int:
        return -(-len(self._data) // self._batch_size)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        return self._ordered[index * self._batch_size : (index + 1) * self._batch_size]

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


class _Stream:
    """A Hugging Face `IterableDataset` in batches; it has its own shuffling."""

    def __init__(self, data: Any, batch_size: int) -> None:
        self._data = data
        self._batch_size = batch_size
        self.set_epoch = data.set_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self._data.iter(self._batch_size)
