"""Data sets of which each process has a share of its own."""

from solstice._types import Dataset


class PerProcess:
    """The result of `per_process`.

    Attributes:
        data: the data set of this process.
    """

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"per_process({self.data!r})"


def per_process(data: Dataset) -> PerProcess:
    """`train_ds = solstice.data.per_process(ds)`: each process reads a share of its own.

    ```python
    sampler = grain.samplers.IndexSampler(
        len(source), shard_options=grain.sharding.ShardByJaxProcess(drop_remainder=True), seed=0
    )
    train_ds = solstice.data.per_process(grain.DataLoader(data_source=source, sampler=sampler))
    ```

    Without it, all processes of a run iterate the same data set, so that the history is that of
    one process. With it, a batch of the run is the batches of all processes, one after the other;
    32 examples in each of 4 processes are a batch of 128. `record.batch` and `check_batch` see the
    share of their process. An epoch ends for all when the first process has no more batches.

    Args:
        data: the data set of this process, for example by `ds.shard(jax.process_count(),
            jax.process_index())` of `tf.data`. Its batches must have one size in all processes, so
            drop a smaller last one.
    """
    return PerProcess(data)
