"""Names of types that several modules share."""

from collections.abc import Hashable
from typing import Any, Literal, TypeAlias, get_args

PyTree: TypeAlias = Any
"""A tree of JAX: arrays in any nesting of containers."""

Structure: TypeAlias = Hashable
"""The structure of a tree, for which JAX's own class has no type."""

Batch: TypeAlias = Any
"""A pytree of arrays with the examples along axis 0."""

Outputs: TypeAlias = Any
"""The second result of a step: Metrics, scalars by name, or any pytree."""

Mode: TypeAlias = Literal["train", "val", "test", "predict"]
"""What the steps of a run are for."""

MODES: tuple[Mode, ...] = get_args(Mode)
