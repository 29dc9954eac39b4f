"""The check that runs of a Trainer give the same numbers on a mesh as on one device."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from solstice._trainer import Trainer

_TOLERANCE = 1e-5
"""Relative. The order of sums depends on the devices."""


def same_on_a_mesh(run: Callable[[Trainer], Mapping[str, Any]], tolerance: float = 0) -> None:
    """Compares the numbers of a run on all devices with those on one; skips if there is one only.

    Args:
        run: runs a Trainer, and returns numbers by name.
        tolerance: the largest allowed difference, absolute.
    """
    count = jax.device_count()
    if count == 1:
        pytest.skip(
            "not checked: there is one device, and a mesh of one splits nothing; set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8"
        )
    expected = run(Trainer(mesh=1))
    for name, sharding in (("replicated", "replicated"), ("split", _split_by(count))):
        found = run(Trainer(mesh="all", sharding=sharding))
        assert found.keys() == expected.keys(), f"on a mesh: {[*found]}, and {[*expected]} on one"
        for key, value in found.items():
            same = np.allclose(value, expected[key], _TOLERANCE, tolerance, equal_nan=True)
            assert same, (
                f"the same on a mesh: {key!r} is {expected[key]} on one device, and {value} on "
                f"{count} with a {name} state"
            )


def _split_by(count: int) -> Callable[[str, jax.ShapeDtypeStruct], PartitionSpec]:
    """A rule like "fsdp", which splits small arrays too."""

    def rule(path: str, like: jax.ShapeDtypeStruct) -> PartitionSpec:
        del path
        axes = [axis for axis, size in enumerate(like.shape) if size and size % count == 0]
        return PartitionSpec(*[None] * axes[0], "data") if axes else PartitionSpec()

    return rule
