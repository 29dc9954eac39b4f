"""The few type names that several modules share."""

from typing import Any, Literal, TypeAlias

Batch: TypeAlias = Any
"""A pytree of arrays; axis 0 of every array is the example."""

Outputs: TypeAlias = Any
"""What a step returns beside the Experiment: Metrics, scalars by name, or any pytree."""

Mode: TypeAlias = Literal["train", "val", "test", "predict"]
