"""Equinox as its documentation shows it: `eqx.filter_jit` over a module (leaf scaling only)."""

from typing import Any

import equinox as eqx
import jax
import workloads
from workloads import Workload


class State(eqx.Module):
    params: Any
    total: Any


def make(workload: Workload) -> Any:
    @eqx.filter_jit
    def step(state: State, batch: Any) -> State:
        params, _, metrics = workload.update(state.params, (), batch)
        return State(params, workloads.add(state.total, metrics))

    params = workload.init()[0]

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        nonlocal params
        state = State(params, workloads.zeros())
        for batch in batches:
            state = step(state, batch)
        params = jax.block_until_ready(state.params)
        return workloads.means(state.total, len(batches))

    return run_epoch
