"""A mesh of devices: batches are split over them, and the state is split or whole on them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solstice import _tree
from solstice._engine._pack import is_weak
from solstice._engine._sharding import Rule, Spread, left_whole, shardings, size_of
from solstice._errors import DataError, ShardingError
from solstice._types import Batch, PyTree

if TYPE_CHECKING:
    from solstice._engine._trace import Plan

_WHOLE = 0.02
"""The share of the state that "fsdp" may leave whole without a warning."""
# A choice, that of MaxText's `sharding_tolerance`.


@dataclass(frozen=True)
class MeshPlacement:
    """Several devices, in one process or many: a batch is split over them along one axis.

    Attributes:
        mesh: the devices.
        axis: the axis of the mesh along which batches are split.
        rule: how the arrays of the state are split.
        num_shares: the number of processes that each feed a share of a batch.
    """

    mesh: Mesh
    axis: str
    # Not compared, because the shardings that follow from it are.
    rule: Rule = field(compare=False)
    num_shares: int = field(default=1, compare=False)

    @property
    def is_lead(self) -> bool:
        """Whether this is process 0."""
        return jax.process_index() == 0

    @property
    def num_devices(self) -> int:
        """The devices of all processes."""
        return self.mesh.size

    @property
    def is_mesh(self) -> bool:
        """True."""
        return True

    @property
    def parts(self) -> int:
        """The number of parts of a batch."""
        return self.mesh.shape[self.axis]

    @property
    def device(self) -> NamedSharding:
        """On each device, whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def shardings(self, plan: "Plan") -> tuple[NamedSharding, ...]:
        """The sharding of each array of a state, by the rule."""
        return shardings(self.rule, plan.program.array_names(), plan.types, self.mesh, self.axis)

    def put(self, batches: Batch) -> Batch:
        """Stacked batches, split along axis 1; those that the devices do not divide are whole."""
        return _tree.map(self._put_stacked, batches)

    def put_inputs(self, inputs: PyTree) -> PyTree:
        """The inputs of a call: those that are not on the devices yet are numbers, for all."""
        return _tree.map(self._put_input, inputs)

    def of_shares(self) -> "MeshPlacement":
        """The same for batches of which each process feeds a share."""
        return replace(self, num_shares=jax.process_count())

    def put_state(self, arrays: list[Array], split: Sequence[Any]) -> list[Array]:
        """The arrays in these shardings. They may share memory with the given ones."""
        return [put(array, one) for array, one in zip(arrays, split, strict=True)]

    def put_whole(self, tree: PyTree) -> PyTree:
        """The arrays of a tree, whole on each device."""
        return _tree.map(partial(put, sharding=self.device), tree)

    def constrain(self, arrays: list[Array], split: Sequence[Any]) -> list[Array]:
        """The arrays of the state, within a compiled step, in these shardings."""
        return [lax.with_sharding_constraint(x, one) for x, one in zip(arrays, split, strict=True)]

    def constrain_whole(self, tree: PyTree) -> PyTree:
        """Results of a step, whole on each device, so that each process can read them."""
        return _tree.map(self._constrain_whole, tree)

    def split(self, batch: Batch) -> Batch:
        """One batch within a compiled step, split along axis 0 like those from the host."""
        return _tree.map(self._split, batch)

    def types(self, plan: "Plan", batch: Batch) -> tuple[list[Any], Batch]:
        """The arrays of the state and of one batch, as shapes with their shardings."""
        pairs = zip(plan.types, self.shardings(plan), strict=True)
        return [_type_in(like, one) for like, one in pairs], _tree.map(self._type_of, batch)

    def undivided(self, batch: Batch) -> str:
        """A sentence if the devices do not divide a batch, so that each computes all; else ""."""
        sizes = [np.shape(leaf)[0] for leaf in _tree.leaves(batch) if np.ndim(leaf) > 0]
        if self.parts == 1 or not sizes or any(size % self.parts == 0 for size in sizes):
            return ""
        size, more = sizes[0], -sizes[0] % self.parts
        return (
            f"{self.parts} devices cannot divide a batch of {size:,} examples, so each of them "
            f"computes the whole batch, in the time of one device. Use batches of "
            f"{size + more:,} examples, or of another multiple of {self.parts}"
        )

    def notes(self, plan: "Plan", split: Sequence[Any]) -> list[str]:
        """Lines on the memory of each device, for `Trainer.explain`."""
        spread, types = Spread(self.parts, tuple(split)), plan.types
        shape = " x ".join(f"{size} ({name!r})" for name, size in self.mesh.shape.items())
        nbytes, count = spread.nbytes(types, range(len(types))), jax.process_count()
        where = f" of {count} processes" if count > 1 else ""
        return [
            f"mesh: {shape} devices{where}; state on each: {nbytes:,} bytes",
            *(
                f"large, but whole on each device: {path}, {size_of(like):,} bytes"
                for path, like in self._left_whole(plan, split).items()
            ),
        ]

    def advice(self, plan: "Plan", split: Sequence[Any]) -> str:
        """A sentence if "fsdp" leaves more than 2 % of the state whole on each device; else ""."""
        whole = self._left_whole(plan, split)
        nbytes, total = sum(map(size_of, whole.values())), sum(map(size_of, plan.types))
        if nbytes <= _WHOLE * total:
            return ""
        path, like = next(iter(whole.items()))
        more = f", and of {len(whole) - 1} more arrays" if len(whole) > 1 else ""
        return (
            f'sharding="fsdp" leaves {nbytes:,} of {total:,} bytes whole on each device: '
            f"{self.parts} devices divide no axis of `{path}`, {like.dtype}{list(like.shape)}"
            f"{more}. Pad an axis to a multiple of {self.parts}, or use another number of devices"
        )

    def _left_whole(self, plan: "Plan", split: Sequence[Any]) -> "dict[str, jax.ShapeDtypeStruct]":
        return left_whole(self.rule, plan.program.array_names(), plan.types, split)

    def _put_stacked(self, leaf: Any) -> Any:
        if self.num_shares > 1:
            return self._put_share(leaf)
        divides = np.ndim(leaf) > 1 and np.shape(leaf)[1] % self.parts == 0
        spec = PartitionSpec(None, self.axis) if divides else PartitionSpec()
        return put(leaf, NamedSharding(self.mesh, spec))

    def _put_input(self, leaf: Any) -> Array:
        return leaf if isinstance(leaf, Array) else put(leaf, self.device)

    def _put_share(self, leaf: Any) -> Array:
        """Stacked batches of all processes, of which this one has a share."""
        if np.ndim(leaf) < 2:
            raise DataError(
                "a batch has a number that is not an array of examples, and each process may have "
                "another one: with `per_process`, all arrays of a batch need the examples on axis 0"
            )
        steps, size = leaf.shape[:2]
        here = self.parts // self.num_shares
        if here == 0 or size % here:
            raise ShardingError(
                f"a share of {size} examples cannot be split over the {here} devices of this "
                f"process along the axis {self.axis!r}. Give each process batches of a multiple of "
                f"{max(here, 1)} examples, and drop a smaller last one"
            )
        shape = (steps, size * self.num_shares, *leaf.shape[2:])
        sharding = NamedSharding(self.mesh, PartitionSpec(None, self.axis))
        places = cast("Any", sharding).addressable_devices_indices_map(shape)
        rows = {str(index[1]) for index in places.values()}  # a slice has no hash before 3.12
        if len(rows) != here:
            raise ShardingError(
                f"the axis {self.axis!r} of the mesh has {self.parts} parts, and this process has "
                f"{len(rows)} of them instead of {here}: with `per_process`, each process needs "
                f"parts of its own. Order the devices of the mesh so that the axis {self.axis!r} "
                f"goes from process to process, or leave `per_process` out"
            )
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    def _split(self, leaf: Array) -> Array:
        return lax.with_sharding_constraint(leaf, self._of_batch(leaf.shape))

    def _type_of(self, like: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return _type_in(like, self._of_batch(like.shape))

    def _of_batch(self, shape: tuple[int, ...]) -> NamedSharding:
        divides = len(shape) > 0 and shape[0] % self.parts == 0
        spec = PartitionSpec(self.axis) if divides else PartitionSpec()
        return NamedSharding(self.mesh, spec)

    def _constrain_whole(self, leaf: Array) -> Array:
        return lax.with_sharding_constraint(leaf, self.device)


def _type_in(like: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    weak = is_weak(like)
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding, weak_type=weak)


def put(array: Any, sharding: NamedSharding) -> Array:
    """An array that each process has whole, or that lies on all of them, in a sharding."""
    if isinstance(array, Array) and array.sharding == sharding:
        return array  # `device_put` would make another array on its memory
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if isinstance(array, Array) and not array.is_fully_addressable:
        same = array.sharding.is_equivalent_to(sharding, array.ndim)
        return array if same else cast("Array", jax.jit(_same, out_shardings=sharding)(array))
    if isinstance(array, Array) and _tree.is_key(array):  # which `device_put` refuses here
        data = _from_host(jax.random.key_data(array), NamedSharding(sharding.mesh, PartitionSpec()))
        return cast("Any", jax.random).wrap_key_data(data, impl=jax.random.key_impl(array))
    return _from_host(array, sharding)


def _from_host(array: Any, sharding: NamedSharding) -> Array:
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)


def _same(array: Array) -> Array:
    return array
