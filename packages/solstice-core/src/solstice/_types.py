"""Names of types that several modules share."""

from typing import Any, Literal, TypeAlias

Batch: TypeAlias = Any
"""A pytree of arrays with the examples along axis 0."""

Outputs: TypeAlias = Any
"""The second result of a step: Metrics, scalars by name, or any pytree."""

Mode: TypeAlias = Literal["train", "val", "test", "predict"]
