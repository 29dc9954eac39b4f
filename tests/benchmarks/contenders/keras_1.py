"""Keras 3 on JAX: `model.fit` with steps_per_execution=1, without a progress bar."""

from typing import Any

from models import keras
from workloads import Workload


def make(workload: Workload) -> Any:
    model = keras.build(workload, steps_per_execution=1)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        steps = len(batches)
        history = model.fit((b for b in batches), steps_per_epoch=steps, epochs=1, verbose=0)
        return {name: float(values[-1]) for name, values in history.history.items()}

    return run_epoch
