"""The limit: one `lax.scan` over all batches, already on the device."""

from typing import Any

import jax
import numpy as np
import workloads
from workloads import Workload


def make(workload: Workload) -> Any:
    @jax.jit
    def evaluate(params: Any, stacked: Any) -> Any:
        def step(total: Any, batch: Any) -> Any:
            return workloads.add(total, workload.metrics(params, batch)), None

        return jax.lax.scan(step, workloads.zeros(), stacked)[0]

    params = workload.init()[0]
    on_device: dict[int, Any] = {}

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        if len(batches) not in on_device:
            on_device[len(batches)] = jax.device_put(
                tuple(map(np.stack, zip(*batches, strict=True)))
            )
        return workloads.means(evaluate(params, on_device[len(batches)]), len(batches))

    return run_epoch
