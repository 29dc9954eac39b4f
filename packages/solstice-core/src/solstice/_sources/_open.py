"""Opening: the Source of a data set as the user has given it."""

from typing import Any, cast

from solstice._arguments import whole
from solstice._errors import DataError
from solstice._sources import _libraries
from solstice._sources._advice import check_arrays, examples_advice
from solstice._sources._kinds import describe, is_array, is_examples, is_tree_of_arrays
from solstice._sources._several import check_single
from solstice._sources._source import Source
from solstice.data import Batches, PerProcess


def needs_batch_size(data: object) -> bool:
    """Whether a data set is examples, to cut into batches."""
    if isinstance(data, PerProcess):
        return needs_batch_size(data.data)
    return is_examples(data) or _libraries.how_to_batch(data, "ds") is not None


def open_source(
    data: Any,
    name: str,
    batch_size: int | None = None,
    *,
    shuffle: bool = False,
    limit: int | None = None,
    like: Any = None,
    on_device: bool | None = False,
) -> Source:
    """`open_source(train_ds, "train_ds", batch_size)`: the Source of a user's data set.

    Arrays with a `batch_size` are cut into batches, `on_device` as in `solstice.data.batches`.

    Raises:
        DataError: `data` is not a data set, is several, needs a `batch_size`, or has one already.
    """
    if isinstance(data, PerProcess):
        if isinstance(data.data, Batches) and data.data.on_device:
            raise DataError(
                f"{name} has on_device=True, which puts all examples on each device, and "
                f"`per_process`, with which each process has other examples. Feed them from the "
                f"host: `solstice.data.per_process({data.data.from_host().strip('`')})`"
            )
        more: dict[str, Any] = {"shuffle": shuffle, "limit": limit, "on_device": False}
        source = open_source(data.data, name, batch_size, **more)
        source.is_share = True
        return source
    check_arrays(data, name)
    check_single(data, name, batch_size, like.data if isinstance(like, PerProcess) else like)
    # No shuffling in evaluation, because predictions would not match their examples.
    order = ", shuffle=True" if shuffle else ""
    if batch_size is not None:
        batch_size = whole("batch_size", batch_size, 1, "examples", error=DataError)
        batched = _libraries.in_batches(data, batch_size, shuffle=shuffle)
        if batched is not None:
            return Source(batched, name, limit)
        if isinstance(data, list) and not all(is_array(part) for part in cast("list[Any]", data)):
            raise DataError(
                examples_advice(data, name)
                or f"batch_size={batch_size} was given, and {name} is a list of ready batches: "
                f"leave batch_size out. Put arrays to cut into batches into a tuple or a dict: "
                f"`{name}=(x, y)`"
            )
        if not is_tree_of_arrays(data):
            raise DataError(
                f"batch_size={batch_size} was given, and {name} is not a tree of arrays but "
                f"{describe(data)}; leave batch_size out for data that come in batches, and cut "
                f"other arrays into batches by `solstice.data.batches(arrays, {batch_size})`. For "
                f"rows that it reads by their numbers, write "
                f"`{name}=solstice.data.batches({name}, {batch_size}{order})`"
            )
        data = Batches(data, batch_size, shuffle=shuffle, on_device=on_device)
    elif is_examples(data):
        raise DataError(
            f"{name} is {describe(data)}: examples, not batches. Choose a batch size: "
            f"`batch_size=32`, or `{name}=solstice.data.batches({name}, 32{order})`. "
            f"Put ready batches into a list"
        )
    else:
        hint = _libraries.how_to_batch(data, name)
        if hint is not None:
            raise DataError(f"{name} is {describe(data)}: examples, not batches. Write {hint}")
    return Source(data, name, limit)
