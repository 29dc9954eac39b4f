"""Placement: warnings about several devices, an error in several processes."""

import hashlib
from typing import Any, cast

import jax

from solstice import _tree
from solstice._console import warn


def check_processes() -> None:
    """Raises a RuntimeError in one of several processes, because each would train separately."""
    count = jax.process_count()
    if count > 1:
        raise RuntimeError(
            f"JAX runs in {count} processes, and a Trainer runs in one: each process would train "
            f"or evaluate a separate model on its own data, and nothing would be averaged. Run one "
            f"process without `jax.distributed.initialize()`"
        )


def warn_of_spread_state(experiment: Any) -> None:
    """Warns of an Experiment on several devices, because that only slows steps down."""
    spread = _spread(experiment)
    if not spread:
        return
    path, array = next(iter(spread.items()))
    count = _num_devices(array)
    loss = (
        f"each of the {count} devices runs every step in full"
        if all(x.is_fully_replicated for x in spread.values())
        else f"all {count} devices compute each step on the whole batch, and exchange their results"
    )
    warn(
        f"{_named(path, len(spread), type(experiment).__name__)} on {count} devices, and the "
        f"Trainer does not split batches over devices: {loss}, which is slower than one device. "
        f"Put the arrays on one: `jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]) if "
        f"isinstance(x, jax.Array) else x, experiment)`",
        stacklevel=4,
    )


def warn_of_spread_batch(batch: Any) -> bool:
    """Warns of a batch on several devices, because it is copied to the host. True if it warned."""
    spread = _spread(batch)
    if spread:
        path, array = next(iter(spread.items()))
        warn(
            f"{_named(f'batch{path}', len(spread), 'batch')} on {_num_devices(array)} "
            f"devices. The Trainer does not use that: it copies each batch to the host and runs "
            f"the step on the devices of the Experiment, which is slower than a batch of NumPy "
            f"arrays. Pass NumPy arrays: `jax.device_get(batch)`",
            stacklevel=2,
        )
    return bool(spread)


def topology(experiment: Any) -> dict[str, Any]:
    """The devices of an Experiment, and the setting of JAX on which its random numbers depend."""
    arrays: list[Any] = [x for x in _tree.leaves(experiment) if isinstance(x, jax.Array)]
    most: Any = max(arrays, key=_num_devices, default=None)
    devices = cast("Any", jax.devices() if most is None else most.sharding.device_set)
    split = [str(getattr(x.sharding, "spec", "")) for x in arrays if _num_devices(x) > 1]
    return {
        "devices": _num_devices(most),
        "kind": next(iter(devices)).device_kind,
        "layout": hashlib.sha256("\n".join(split).encode()).hexdigest() if split else "",
        "jax_threefry_partitionable": bool(cast("Any", jax.config).jax_threefry_partitionable),
    }


def _named(path: str, count: int, owner: str) -> str:
    if count == 1:
        return f"the array `{path}` of the {owner} lies"
    return f"`{path}` and {count - 1} more arrays of the {owner} lie"


def _spread(tree: Any) -> dict[str, jax.Array]:
    """The arrays on more than one device, by path."""
    return {
        path: leaf
        for path, leaf in _tree.leaves_by_path(tree)
        if isinstance(leaf, jax.Array) and _num_devices(leaf) > 1
    }


def _num_devices(array: Any) -> int:
    sharding: Any = getattr(array, "sharding", None)
    return 1 if sharding is None else len(sharding.device_set)
