"""Data sets that take time to read: `ds, close = loaders.make(workload, batches)`.

All read the same examples one at a time, with the same Python work on each, in the same order. The
libraries are used as their documentation shows it; each may not be there.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from workloads import Workload


def make(workload: Workload, batches: list[Any]) -> Any:
    """`ds = make(workload, batches)`: a data set of these batches, of the workload's kind."""
    x, y = map(np.concatenate, zip(*batches, strict=True))
    examples, size = Examples(x, y), len(batches[0][1])
    return KINDS[workload.name.partition("-")[2]](examples, size)


class Examples:
    """Examples by number, each with work in pure Python, as decoding or augmenting has."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32]:
        row = self.x[index]
        sum(i * i for i in range(WORK))
        return row, self.y[index]


WORK = 400
"""Rounds of a loop for an example: some 20 microseconds, hence some 700 for a batch of 32."""


def python(examples: Examples, size: int) -> Any:
    """A generator function."""

    def read() -> Iterator[Any]:
        for start in range(0, len(examples), size):
            rows = [examples[i] for i in range(start, min(start + size, len(examples)))]
            yield tuple(map(np.stack, zip(*rows, strict=True)))

    return read


def grain(examples: Examples, size: int) -> Any:
    """A grain pipeline, with the threads that it has by default."""
    import grain

    return grain.MapDataset.source(examples).batch(size).to_iter_dataset()


def tfdata(examples: Examples, size: int) -> Any:
    """A `tf.data` pipeline from a Python generator."""
    import tensorflow as tf

    def read() -> Iterator[Any]:
        return (examples[i] for i in range(len(examples)))

    signature = (
        tf.TensorSpec(examples.x.shape[1:], tf.float32),
        tf.TensorSpec((), tf.int32),
    )
    ds = tf.data.Dataset.from_generator(read, output_signature=signature)
    return ds.batch(size).prefetch(2)


def torch(examples: Examples, size: int) -> Any:
    """A torch `DataLoader`, in the process itself."""
    from torch.utils.data import DataLoader

    return DataLoader(examples, batch_size=size)


KINDS = {"python": python, "grain": grain, "tfdata": tfdata, "torch": torch}
