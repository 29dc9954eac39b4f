"""Keras 3 on JAX: one `model.fit` of arrays with validation, without a progress bar."""

from typing import Any

from models import keras
from workloads import Workload


def make(workload: Workload) -> Any:
    return keras.make_epochs(workload, steps_per_execution=1)
