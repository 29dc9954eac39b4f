"""The loop that is usually written: a jitted step, and `float(loss)` after each."""

from typing import Any

import jax
from workloads import Workload


def make(workload: Workload) -> Any:
    step = jax.jit(workload.update)
    params, opt_state = workload.init()

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        nonlocal params, opt_state
        loss = accuracy = 0.0
        for batch in batches:
            params, opt_state, metrics = step(params, opt_state, batch)
            loss += float(metrics["loss"])
            accuracy += float(metrics["accuracy"])
        jax.block_until_ready(params)
        return {"loss": loss / len(batches), "accuracy": accuracy / len(batches)}

    return run_epoch
