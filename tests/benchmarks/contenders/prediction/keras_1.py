"""Keras 3 on JAX: `model.predict` with steps_per_execution=1, and a softmax as the last layer."""

from typing import Any

from models import keras
from workloads import Workload, of_predictions


def make(workload: Workload) -> Any:
    model = keras.predictor(workload, steps_per_execution=1)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        inputs = ((x,) for x, _ in batches)
        return of_predictions(model.predict(inputs, steps=len(batches), verbose=0))

    return run_epoch
