"""The members of a population over the devices of a mesh: each has some, and whole batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from solstice import _tree
from solstice._engine._mesh import MeshPlacement, put
from solstice._engine._sharding import is_of_members
from solstice._errors import ShardingError
from solstice._types import Batch, PyTree

if TYPE_CHECKING:
    from solstice._engine._trace import Plan


@dataclass(frozen=True)
class MembersPlacement(MeshPlacement):
    """Several devices that train different members on the same batches, without communication."""

    def of_shares(self) -> "MeshPlacement":
        """None: each device needs all of a batch.

        Raises:
            ShardingError: there are several processes.
        """
        if jax.process_count() > 1:
            raise ShardingError(
                'sharding="members" needs all of a batch on each device, and `per_process` gives '
                "each process a share. Leave `per_process` out, so that all read the same data"
            )
        return self

    def put(self, batches: Batch) -> Batch:
        """Stacked batches, whole on each device."""
        return super().put_whole(batches)

    def split(self, batch: Batch) -> Batch:
        """One batch within a compiled step, whole on each device."""
        return super().constrain_whole(batch)

    def put_whole(self, tree: PyTree) -> PyTree:
        """Metrics of all members, each on the device of its member."""
        return _tree.map(self._put_results, tree)

    def constrain_whole(self, tree: PyTree) -> PyTree:
        """Results of a step, each on the device of its member, where one process can read them."""
        return _tree.map(self._constrain_results, tree)

    def undivided(self, batch: Batch) -> str:
        """None: batches are whole on each device."""
        del batch
        return ""

    def advice(self, plan: "Plan", split: Sequence[Any]) -> str:
        """A sentence if the devices do not divide the members, so that each computes all."""
        pairs = zip(plan.program.array_names(), plan.types, split, strict=True)
        whole = [
            like.shape[0]
            for path, like, one in pairs
            if is_of_members(path, like) and one.is_fully_replicated
        ]
        if not whole or self.parts == 1:
            return ""
        size, more = whole[0], -whole[0] % self.parts
        return (
            f"{self.parts} devices cannot divide {size} members, so each of them computes all "
            f"members, in the time of one device. Use {size + more} members, or another multiple "
            f"of {self.parts}"
        )

    def _put_results(self, leaf: Any) -> Any:
        return put(leaf, self._of_results(leaf.shape))

    def _constrain_results(self, leaf: Any) -> Any:
        return lax.with_sharding_constraint(leaf, self._of_results(leaf.shape))

    def _of_results(self, shape: tuple[int, ...]) -> NamedSharding:
        """Whole with several processes, since each of them reads the results of all members."""
        divides = len(shape) > 0 and shape[0] % self.parts == 0 and jax.process_count() == 1
        return NamedSharding(self.mesh, PartitionSpec(self.axis) if divides else PartitionSpec())

    def _of_batch(self, shape: tuple[int, ...]) -> NamedSharding:
        del shape
        return self.device
