"""Keras 3 on JAX: `model.evaluate` with steps_per_execution=32, without a progress bar."""

from typing import Any

from models import keras
from workloads import Workload


def make(workload: Workload) -> Any:
    model = keras.build(workload, steps_per_execution=32)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        return model.evaluate((b for b in batches), steps=len(batches), verbose=0, return_dict=True)

    return run_epoch
