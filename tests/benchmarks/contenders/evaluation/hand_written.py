"""The loop by hand: a jitted step that adds the metrics up, which are read at the end."""

from functools import partial
from typing import Any

import jax
import workloads
from workloads import Workload


def make(workload: Workload) -> Any:
    @partial(jax.jit, donate_argnums=1)
    def step(params: Any, total: Any, batch: Any) -> Any:
        return workloads.add(total, workload.metrics(params, batch))

    params = workload.init()[0]

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        total = workloads.zeros()
        for batch in batches:
            total = step(params, total, batch)
        return workloads.means(total, len(batches))

    return run_epoch
