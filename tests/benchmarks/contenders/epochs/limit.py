"""The limit: a `lax.scan` over an epoch and one over its validation, on data on the device."""

from functools import partial
from typing import Any

import jax
import numpy as np
import workloads
from workloads import Workload


def make(workload: Workload) -> Any:
    @partial(jax.jit, donate_argnums=(0, 1))
    def train(params: Any, opt_state: Any, stacked: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, opt_state, total = carry
            params, opt_state, metrics = workload.update(params, opt_state, batch)
            return (params, opt_state, workloads.add(total, metrics)), None

        return jax.lax.scan(step, (params, opt_state, workloads.zeros()), stacked)[0]

    @jax.jit
    def evaluate(params: Any, stacked: Any) -> Any:
        def step(total: Any, batch: Any) -> Any:
            return workloads.add(total, workload.metrics(params, batch)), None

        return jax.lax.scan(step, workloads.zeros(), stacked)[0]

    params, opt_state = workload.init()
    on_device = {1: put(workload.batches[:1]), len(workload.batches): put(workload.batches)}
    validation = put(workload.validation)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        nonlocal params, opt_state
        if len(batches) == 1:  # the first step
            params, opt_state, total = train(params, opt_state, on_device[1])
            return workloads.means(total, 1)
        for _ in range(workload.epochs):
            params, opt_state, total = train(params, opt_state, on_device[len(batches)])
            found = workloads.means(total, len(batches))
            total = evaluate(params, validation)
            found |= workloads.of_validation(workloads.means(total, len(workload.validation)))
        return found

    return run_epoch


def put(batches: list[Any]) -> Any:
    return jax.device_put(tuple(map(np.stack, zip(*batches, strict=True))))
