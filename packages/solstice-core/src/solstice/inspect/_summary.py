"""Summary: a table of the arrays in an Experiment."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding

from solstice import _tree
from solstice._arguments import whole_or_none
from solstice._batch import arrays_of
from solstice._engine import Layout, MeshLike, Plan, Sharding, prepare, shard_bytes
from solstice._experiment import Experiment, check_experiment, params_of
from solstice._text_table import aligned, size_text
from solstice._types import Batch

_ROWS = 40
"""The most subtrees in a table without an explicit depth."""

_TRAINS = {
    frozenset[bool](): "",
    frozenset([True]): "yes",
    frozenset([False]): "no",
    frozenset([True, False]): "in part",
}
"""By whether each array of a subtree changes in a step."""


@dataclass(frozen=True)
class Part:
    """A line of a summary: the arrays of one subtree.

    Attributes:
        path: the path of the subtree, such as "params/encoder".
        arrays: number of arrays.
        size: number of elements of all arrays.
        nbytes: size of all arrays in bytes.
        dtype: the dtypes, such as "bfloat16, float32".
        sharding: "1 device", or the shardings over several.
        trains: whether a training step changes the arrays: "yes", "no" or "in part"; "" without a
            batch.
        device_bytes: the bytes of all arrays on each device; None without a mesh.
    """

    path: str
    arrays: int
    size: int
    nbytes: int
    dtype: str
    sharding: str
    trains: str
    device_bytes: int | None = None


@dataclass(frozen=True)
class Summary:
    """`print(solstice.summary(exp))`: a table of the arrays in an Experiment by subtree.

    Attributes:
        name: the class of the Experiment.
        parts: the lines of the table.
        num_params: number of elements of the params.
        num_trainable: number of those that a training step changes; None without a batch.
        params_bytes: size of the params in bytes.
        opt_state_bytes: size of fields named `opt_state` in bytes.
        total_bytes: size of all arrays in bytes.
        num_devices: the devices of the mesh; None without one.
        device_bytes: size of all arrays on each of them in bytes; None without a mesh.
    """

    name: str
    parts: tuple[Part, ...]
    num_params: int
    num_trainable: int | None
    params_bytes: int
    opt_state_bytes: int
    total_bytes: int
    num_devices: int | None = None
    device_bytes: int | None = None

    def __str__(self) -> str:
        head = ["subtree", "arrays", "numbers", "bytes", "dtype", "on", "trains"]
        head += [] if self.device_bytes is None else ["bytes on each"]
        table = aligned([head, *map(_cells, self.parts)], left=[0, 4, 5, 6])
        rule = "-" * max(map(len, table))
        trainable = "" if self.num_trainable is None else f", {self.num_trainable:,} of them train"
        return "\n".join(
            [
                self.name,
                table[0],
                rule,
                *table[1:],
                rule,
                f"params: {self.num_params:,} numbers, {size_text(self.params_bytes)}{trainable}",
                f"optimiser state: {size_text(self.opt_state_bytes)}",
                f"all arrays: {size_text(self.total_bytes)}{self._on_each()}",
            ]
        )

    __repr__ = __str__

    def _on_each(self) -> str:
        if self.device_bytes is None:
            return ""
        return f", {size_text(self.device_bytes)} on each of {self.num_devices} devices"


def summary(
    experiment: Experiment,
    batch: Batch = None,
    *,
    depth: int | None = None,
    mesh: MeshLike | None = None,
    sharding: Sharding = "replicated",
) -> Summary:
    """`solstice.summary(exp)` or `solstice.summary(exp, batch)`: list the arrays by subtree.

    `solstice.summary(exp, mesh="all", sharding="fsdp")` shows how a Trainer with this mesh would
    split them, and the bytes on each device.

    Args:
        experiment: an Experiment. Nothing is computed, so the result of `equinox.filter_eval_shape`
            works too. Its params are the field `params` of it or of its `learner`; without one, all
            arrays.
        batch: a training batch. With it, the Experiment is set up if needed, and the table shows
            which subtrees a training step changes, according to its trace.
        depth: number of tree levels to show; by default as many as fit in 40 lines.
        mesh: the devices, as of a `Trainer`. Nothing is moved to them.
        sharding: as of a `Trainer`.

    Raises:
        ShardingError: the mesh or the sharding does not fit the devices or the Experiment.
        ExperimentError, DataError: the step cannot be traced with the batch.
    """
    check_experiment(experiment)
    depth = whole_or_none("depth", depth, 0, "levels")
    plan: Plan | None = None
    if batch is not None:
        batch = arrays_of(batch)
        experiment = experiment.setup(batch)
        plan = prepare(experiment, "train_step", batch)[0]
    leaves = _arrays(experiment)
    layout = Layout.of(mesh, sharding)
    split = {} if layout is None else layout.split(_types(leaves))
    moved = {} if plan is None else _changes(plan, batch)
    params = {id(leaf) for leaf in _tree.leaves(params_of(experiment))}
    in_params = {path: leaf for path, leaf in leaves.items() if id(leaf) in params}
    opt_state = [leaf for path, leaf in leaves.items() if "opt_state" in path.split("/")]
    if in_params.keys() == leaves.keys():
        in_params = {p: x for p, x in leaves.items() if "opt_state" not in p.split("/")}
    trainable = sum(x.size for p, x in in_params.items() if moved.get(p, True))
    return Summary(
        name=type(experiment).__name__,
        parts=tuple(_part(p, xs, moved, split) for p, xs in _groups(leaves, depth).items()),
        num_params=sum(leaf.size for leaf in in_params.values()),
        num_trainable=trainable if moved else None,
        params_bytes=_nbytes(in_params.values()),
        opt_state_bytes=_nbytes(opt_state),
        total_bytes=_nbytes(leaves.values()),
        num_devices=next((one.mesh.size for one in split.values()), None),
        device_bytes=_device_bytes(leaves, split),
    )


def _types(leaves: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}


def _device_bytes(leaves: dict[str, Any], split: dict[str, NamedSharding]) -> int | None:
    """The bytes of arrays on each device; None without a mesh."""
    if not split:
        return None
    return sum(shard_bytes(like, split[path]) for path, like in _types(leaves).items())


def _arrays(tree: object) -> dict[str, Any]:
    leaves = _tree.leaves_by_slashes(tree).items()
    return {path: leaf for path, leaf in leaves if hasattr(leaf, "dtype") and hasattr(leaf, "size")}


def _changes(plan: Plan, batch: Batch) -> dict[str, bool]:
    """By path, whether a step changes an array: else it is the same variable in the jaxpr."""
    jaxpr: Any = jax.make_jaxpr(plan.program.call)(list(plan.types), batch).jaxpr
    paths = list(_arrays(plan.program.merge(plan.types)))
    pairs = zip(paths, jaxpr.invars, jaxpr.outvars, strict=False)  # batch and outputs come after
    return {path: old is not new for path, old, new in pairs}


def _groups(leaves: dict[str, Any], depth: int | None) -> dict[str, dict[str, Any]]:
    """The leaves by subtree, at the deepest level for which the table has at most `_ROWS` lines."""
    deepest = max((path.count("/") for path in leaves), default=0)
    groups: dict[str, dict[str, Any]] = {}
    for level in [depth] if depth is not None else range(deepest, 0, -1):
        groups = {}
        for path, leaf in leaves.items():
            parts = path.split("/")
            name = "/".join(parts[: max(min(level, len(parts) - 1), 1)])
            groups.setdefault(name, {})[path] = leaf
        if len(groups) <= _ROWS:
            break
    return groups or {path: {path: leaf} for path, leaf in leaves.items()}


def _part(
    path: str, leaves: dict[str, Any], moved: dict[str, bool], split: dict[str, NamedSharding]
) -> Part:
    changes = frozenset(moved[p] for p in leaves if p in moved)
    return Part(
        path=path,
        arrays=len(leaves),
        size=sum(leaf.size for leaf in leaves.values()),
        nbytes=_nbytes(leaves.values()),
        dtype=", ".join(sorted({str(leaf.dtype) for leaf in leaves.values()})),
        sharding=", ".join(sorted({_sharding(x, split.get(p)) for p, x in leaves.items()})),
        trains=_TRAINS[changes],
        device_bytes=_device_bytes(leaves, split),
    )


def _nbytes(leaves: Iterable[Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _sharding(leaf: object, planned: NamedSharding | None) -> str:
    sharding: Any = planned or getattr(leaf, "sharding", None)
    if sharding is None:
        return "-"
    count = len(sharding.device_set)
    if count == 1:
        return "1 device"
    spec = "" if sharding.is_fully_replicated else f" {getattr(sharding, 'spec', '')}"
    return f"{count} devices{spec or ', copies'}"


def _cells(part: Part) -> list[str]:
    numbers = [f"{part.arrays:,}", f"{part.size:,}", f"{part.nbytes:,}"]
    on_each = [] if part.device_bytes is None else [f"{part.device_bytes:,}"]
    return [part.path, *numbers, part.dtype, part.sharding, part.trains, *on_each]
