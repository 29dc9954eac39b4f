"""Names of types that several modules share."""

from typing import Any, Literal, TypeAlias, get_args

Batch: TypeAlias = Any
"""A pytree of arrays with the examples along axis 0."""

Outputs: TypeAlias = Any
"""The second result of a step: Metrics, scalars by name, or any pytree."""

Mode: TypeAlias = Literal["train", "val", "test", "predict"]
"""What the steps of a run are for."""

MODES: tuple[Mode, ...] = get_args(Mode)
