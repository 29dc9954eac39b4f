"""Placement: where batches and state live, and what happens if they lie elsewhere."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import jax
from jax import Array
from jax.sharding import NamedSharding

from solstice import _tree
from solstice._console import warn
from solstice._errors import DataError
from solstice._experiment import Experiment
from solstice._memory import default_device
from solstice._types import Batch, PyTree

if TYPE_CHECKING:
    from solstice._engine._trace import Plan

READS_HOST = ("cpu",)
"""Platforms on which a call reads memory of the host in place."""

_DETERMINISTIC = "--xla_gpu_deterministic_ops"
"""The flag of XLA without which a program on a GPU may give other bits each time: XLA chooses
kernels by their time, and some of them add in any order."""


class Placement(Protocol):
    """The devices and processes of a run. It is hashable: another placement is another program."""

    @property
    def is_lead(self) -> bool:
        """Whether this process is the one that writes files."""
        ...

    @property
    def num_devices(self) -> int:
        """The number of devices of the state."""
        ...

    @property
    def is_mesh(self) -> bool:
        """Whether the devices of a mesh share the work of a step."""
        ...

    @property
    def parts(self) -> int:
        """The number of parts of a batch."""
        ...

    @property
    def num_shares(self) -> int:
        """The number of processes that each feed a share of a batch; 1 if each feeds all of it."""
        ...

    @property
    def device(self) -> Any:
        """The device, or the sharding, of arrays that are not split; None for JAX's default."""
        ...

    def shardings(self, plan: "Plan") -> tuple[Any, ...]:
        """The sharding of each array of a state; none on one device."""
        ...

    def put(self, batches: Batch) -> Batch:
        """Stacked batches in host memory, on the devices of the run."""
        ...

    def put_inputs(self, inputs: PyTree) -> PyTree:
        """The inputs of a call on the devices: batches, which are there already, and numbers."""
        ...

    def of_shares(self) -> "Placement":
        """The same for batches of which each process feeds a share."""
        ...

    def put_state(self, arrays: list[Array], split: Sequence[Any]) -> list[Array]:
        """The arrays of a state in these shardings. They may share memory with the given ones."""
        ...

    def put_whole(self, tree: PyTree) -> PyTree:
        """Arrays that each device needs whole, such as empty metrics."""
        ...

    def constrain(self, arrays: list[Array], split: Sequence[Any]) -> list[Array]:
        """The arrays of the state, within a compiled step, with their place fixed."""
        ...

    def constrain_whole(self, tree: PyTree) -> PyTree:
        """Results of a step, within a compiled call, that each process can read."""
        ...

    def split(self, batch: Batch) -> Batch:
        """One batch of data on the devices, within a compiled step, split over them."""
        ...

    def undivided(self, batch: Batch) -> str:
        """A sentence if the devices do not divide a batch, so that each computes all; else ""."""
        ...

    def notes(self, plan: "Plan", split: Sequence[Any]) -> list[str]:
        """Lines on the devices, for `Trainer.explain`."""
        ...

    def advice(self, plan: "Plan", split: Sequence[Any]) -> str:
        """A sentence on a sharding that does not do what it is for; else ""."""
        ...


@dataclass(frozen=True)
class SingleDevice:
    """One device, in one process.

    Attributes:
        puts: whether arrays of the host are put on the device before a call. A call on the CPU
            reads their memory in place.
        device: the device to put them on; JAX's default device if None.
        num_devices: more than 1 if the state lies on several, which slows calls down.
        moves_to: the device to which a state is moved first; None to leave it where it lies.
    """

    puts: bool = False
    device: Any = None
    num_devices: int = 1
    moves_to: Any = None

    @property
    def is_mesh(self) -> bool:
        """False."""
        return False

    @property
    def parts(self) -> int:
        """1: each device runs every step in full."""
        return 1

    @property
    def num_shares(self) -> int:
        """1."""
        return 1

    @property
    def is_lead(self) -> bool:
        """True: there is one process."""
        return True

    def put(self, batches: Batch) -> Batch:
        """The arrays on the device; on the CPU the same memory."""
        return jax.device_put(batches, self.device) if self.puts else batches

    def put_inputs(self, inputs: PyTree) -> PyTree:
        """The arrays on the device; on the CPU the same memory."""
        return self.put(inputs)

    def shardings(self, plan: "Plan") -> tuple[Any, ...]:
        """None."""
        del plan
        return ()

    def of_shares(self) -> "Placement":
        """The same: one process feeds all of a batch."""
        return self

    def put_state(self, arrays: list[Array], split: Sequence[Any]) -> list[Array]:
        """The same arrays, on the device of the mesh if there is one."""
        del split
        if self.moves_to is None:
            return arrays
        return [x if _devices(x) == {self.moves_to} else self._moved(x) for x in arrays]

    def _moved(self, array: Array) -> Array:
        return jax.device_put(array, self.moves_to)

    def put_whole(self, tree: PyTree) -> PyTree:
        """The same arrays."""
        return tree

    def constrain(self, arrays: list[Array], split: Sequence[Any]) -> list[Array]:
        """The same arrays."""
        del split
        return arrays

    def constrain_whole(self, tree: PyTree) -> PyTree:
        """The same arrays."""
        return tree

    def split(self, batch: Batch) -> Batch:
        """The same batch."""
        return batch

    def undivided(self, batch: Batch) -> str:
        """None."""
        del batch
        return ""

    def notes(self, plan: "Plan", split: Sequence[Any]) -> list[str]:
        """None."""
        del plan, split
        return []

    def advice(self, plan: "Plan", split: Sequence[Any]) -> str:
        """None."""
        del plan, split
        return ""


SINGLE_DEVICE: Placement = SingleDevice()


def placement_of(experiment: Experiment) -> Placement:
    """The device of an Experiment's arrays, JAX's default device if they are on none."""
    arrays = [x for x in _tree.leaves(experiment) if isinstance(x, Array)]
    # Arrays for which nobody has chosen a device follow the others.
    chosen = [x for x in arrays if getattr(x, "committed", False)]
    devices = {device for x in chosen or arrays for device in _devices(x)}
    if len(devices) > 1:  # compiled calls copy batches to all of them
        return SingleDevice(num_devices=len(devices))
    [device] = devices or {default_device()}
    # None unless one was chosen, because batches bound to a device bind the trained Experiment.
    return SingleDevice(device.platform not in READS_HOST, device if chosen else None)


def check_processes() -> None:
    """Raises a RuntimeError in one of several processes, because each would train separately."""
    count = jax.process_count()
    if count > 1:
        raise RuntimeError(
            f"JAX runs in {count} processes, and this Trainer has no mesh: each process would "
            f"train or evaluate a separate model, and nothing would be averaged. Write "
            f'Trainer(mesh="all")'
        )


def warn_of_spread_state(experiment: Experiment) -> None:
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
        f"{_named(path, len(spread), type(experiment).__name__)} on {count} devices, and this "
        f"Trainer has no mesh, so it does not split batches: {loss}, which is slower than one "
        f'device. Write Trainer(mesh="all"), or Trainer(mesh=1) for one device',
        stacklevel=4,
    )


def warn_of_spread_batch(batch: Batch) -> bool:
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


def check_batch_on_host(batch: Batch) -> None:
    """Raises a DataError for a batch on several devices, which a mesh would have to collect."""
    spread = _spread(batch)
    if not spread:
        return
    path, array = next(iter(spread.items()))
    all_here = all(x.is_fully_addressable for x in spread.values())
    raise DataError(
        f"{_named(f'batch{path}', len(spread), 'batch')} on {_num_devices(array)} devices. A "
        f"Trainer with a mesh splits batches itself, from the memory of the host. Pass the NumPy "
        f"arrays that this batch was made of" + (", or `jax.device_get(batch)`" * all_here)
    )


def topology(experiment: Experiment) -> dict[str, str | int | bool]:
    """The devices of an Experiment, and the settings of JAX and XLA on which its bits depend."""
    arrays = [x for x in _tree.leaves(experiment) if isinstance(x, Array)]
    most = max(arrays, key=_num_devices, default=None)
    devices = cast("Iterable[Any]", jax.devices() if most is None else most.sharding.device_set)
    device = next(iter(devices))
    split = [_split_of(x) for x in arrays if _num_devices(x) > 1]
    return {
        "devices": _num_devices(most),
        "kind": device.device_kind,
        "layout": hashlib.sha256("\n".join(split).encode()).hexdigest() if split else "",
        "jax_threefry_partitionable": bool(cast("Any", jax.config).jax_threefry_partitionable),
        "xla_gpu_deterministic_ops": _is_deterministic(device.platform),
    }


def _split_of(array: Array) -> str:
    """The sharding in words that do not change with the version of JAX."""
    sharding: Any = array.sharding
    if not isinstance(sharding, NamedSharding):
        return ""
    # Also of arrays that are whole, because batches are split along an axis of the mesh.
    return f"{dict(sharding.mesh.shape)} {list(sharding.spec)}"


def _is_deterministic(platform: str) -> bool:
    """Whether a program gives the same bits each time; on a GPU, whether XLA has the flag."""
    if platform != "gpu":
        return True
    words = [word.partition("=") for word in os.environ.get("XLA_FLAGS", "").split()]
    values = [value.lower() for name, _, value in words if name == _DETERMINISTIC]
    return bool(values) and values[-1] in ("", "1", "true")  # of several, the last one counts


def _named(path: str, count: int, owner: str) -> str:
    if count == 1:
        return f"the array `{path}` of the {owner} lies"
    return f"`{path}` and {count - 1} more arrays of the {owner} lie"


def _spread(tree: PyTree) -> dict[str, Array]:
    """The arrays on more than one device, by path."""
    return {
        path: leaf
        for path, leaf in _tree.leaves_by_path(tree)
        if isinstance(leaf, Array) and _num_devices(leaf) > 1
    }


def _num_devices(array: Array | None) -> int:
    return 1 if array is None else max(len(_devices(array)), 1)


def _devices(array: Array) -> set[Any]:
    """The devices of an array; none within a transformation of JAX."""
    sharding: Any = getattr(array, "sharding", None)
    return set() if sharding is None else sharding.device_set
