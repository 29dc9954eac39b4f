"""Names of types that several modules share."""

from collections.abc import Hashable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jax import Array

PyTree: TypeAlias = Any
"""A tree of JAX: arrays in any nesting of containers."""

Structure: TypeAlias = Hashable
"""The structure of a tree, for which JAX's own class has no type."""

AnyArray: TypeAlias = Array | np.ndarray[Any, np.dtype[Any]]
"""An array of JAX, traced or not, or of NumPy."""

Batch: TypeAlias = Any
"""A pytree of arrays with the examples along axis 0."""

Adaptable: TypeAlias = Any
"""A `solstice.compat.Model` or `Optimizer`, or one of any framework with an adapter."""

Inputs: TypeAlias = Any
"""The inputs of a model: an array, or a pytree of arrays, with the examples along axis 0."""

Targets: TypeAlias = Any
"""What a model learns to predict: an array or a pytree of arrays, with examples along axis 0."""

ModelOutputs: TypeAlias = Any
"""The outputs of a model: usually an array with the examples along axis 0."""

Dataset: TypeAlias = Any
"""Batches, or arrays of examples; `solstice.data` has the kinds."""

Outputs: TypeAlias = Any
"""The second result of a step: Metrics, scalars by name, or any pytree."""

Mode: TypeAlias = Literal["train", "val", "test", "predict"]
"""What the steps of a run are for."""

MODES: tuple[Mode, ...] = get_args(Mode)
