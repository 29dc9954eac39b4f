"""Layout: the `mesh` and the `sharding` of a Trainer, and the placement that they give."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from solstice._engine._members import MembersPlacement
from solstice._engine._mesh import MeshPlacement
from solstice._engine._placement import READS_HOST, Placement, SingleDevice
from solstice._engine._sharding import REPLICATED, Rule, shardings
from solstice._errors import ShardingError
from solstice._memory import default_device

if TYPE_CHECKING:
    from solstice._engine._trace import Plan

MeshLike: TypeAlias = str | int | Mesh
"""The `mesh` of a Trainer: "all", a number of devices, or a mesh."""

AXIS = "data"
"""The axis of a mesh along which batches are split, if it has one of this name."""


@dataclass(frozen=True)
class Layout:
    """The `mesh` and the `sharding` of a Trainer, before JAX is asked for devices."""

    mesh: MeshLike
    rule: Rule = REPLICATED

    @staticmethod
    def of(mesh: object, sharding: object) -> "Layout | None":
        """The options as the user has written them, checked; None for one device.

        Raises:
            ValueError: an unknown word, a number below 1, or `sharding` without a mesh.
            TypeError: something else.
        """
        rule = Rule.of(sharding)
        if mesh is None:
            if rule != REPLICATED:
                given = repr(sharding) if isinstance(sharding, str) else "..."
                raise ValueError(
                    f'sharding={given} needs a mesh: write Trainer(mesh="all", sharding={given})'
                )
            return None
        if mesh == "all" or isinstance(mesh, Mesh):
            return Layout(cast("MeshLike", mesh), rule)
        if isinstance(mesh, int | np.integer) and not isinstance(mesh, bool):
            count = int(cast("Any", mesh))
            if count < 1:
                raise ValueError(f"mesh must be 1 device or more; it is {count}")
            return Layout(count, rule)
        raise TypeError(
            f'mesh must be "all", a number of devices, or a jax.sharding.Mesh; it is {mesh!r:.60}'
        )

    def split(self, arrays: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, NamedSharding]:
        """The sharding of each array, by path.

        Raises:
            ShardingError: as by `placement`, or the rule does not fit the arrays.
        """
        mesh, types = _mesh_of(self.mesh), list(arrays.values())
        found = shardings(self.rule, list(arrays), types, mesh, _axis_of(mesh))
        return dict(zip(arrays, found, strict=True))

    def placement(self) -> Placement:
        """The placement on the devices of JAX.

        Raises:
            ShardingError: there are too few devices, or the mesh has explicit axes.
        """
        mesh = _mesh_of(self.mesh)
        if mesh.size > 1 or jax.process_count() > 1:
            kind = MembersPlacement if self.rule.is_members else MeshPlacement
            return kind(mesh, _axis_of(mesh), self.rule)
        [device] = mesh.devices.flat
        chosen = None if device == default_device() else device
        return MeshOfOne(
            device.platform not in READS_HOST, chosen, moves_to=device, mesh=mesh, rule=self.rule
        )


@dataclass(frozen=True)
class MeshOfOne(SingleDevice):
    """A mesh of one device: no mesh, except that the sharding is checked."""

    mesh: Any = field(kw_only=True, compare=False)
    rule: Rule = field(kw_only=True, compare=False)

    def shardings(self, plan: "Plan") -> tuple[Any, ...]:
        """None."""
        names, axis = plan.program.array_names(), _axis_of(self.mesh)
        shardings(self.rule, names, plan.types, self.mesh, axis)
        return ()


def _axis_of(mesh: Mesh) -> str:
    return cast("str", AXIS if AXIS in mesh.axis_names else mesh.axis_names[0])


def _mesh_of(given: MeshLike) -> Mesh:
    if isinstance(given, Mesh):
        return _check_mesh(given)
    devices = cast("list[Any]", jax.devices())
    count = len(devices) if isinstance(given, str) else given
    if count > len(devices):
        more = (
            f"; on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count={count} makes more"
            if devices[0].platform == "cpu"
            else ""
        )
        raise ShardingError(
            f"mesh={count} asks for {count} devices, and JAX has {len(devices)} of the platform "
            f'{devices[0].platform!r}. Write mesh="all"{more}'
        )
    return _check_mesh(Mesh(np.array(devices[:count]), (AXIS,)))


def _check_mesh(mesh: Mesh) -> Mesh:
    """Raises a ShardingError for a mesh that the Trainer cannot use."""
    if mesh.size == 0 or not mesh.axis_names:
        raise ShardingError('the mesh has no devices. Write mesh="all"')
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        shape, names = tuple(mesh.shape.values()), tuple(mesh.axis_names)
        autos = f"(jax.sharding.AxisType.Auto,) * {len(names)}"
        kinds = ", ".join(kind.name for kind in mesh.axis_types)
        raise ShardingError(
            f"the mesh has axes of the types {kinds}, and a Trainer needs Auto ones, with "
            f"which JAX finds the sharding of each operation. Write "
            f"jax.make_mesh({shape}, {names}, axis_types={autos})"
        )
    owners = {device.process_index for device in mesh.devices.flat}
    missing = sorted({*range(jax.process_count())} - owners)
    if missing:
        raise ShardingError(
            f"the mesh has {mesh.size} devices, none of them in process {missing[0]}, which would "
            f'have nothing to compute. Write mesh="all"'
        )
    return mesh
