"""Flax NNX: `nnx.jit` over a module (leaf scaling only)."""

from typing import Any

import jax
import workloads
from flax import nnx
from workloads import Workload


class State(nnx.Module):
    def __init__(self, params: dict[str, Any]) -> None:
        self.params = nnx.data({name: nnx.Param(array) for name, array in params.items()})
        self.total = nnx.data({name: nnx.Variable(x) for name, x in workloads.zeros().items()})


def make(workload: Workload) -> Any:
    @nnx.jit
    def step(state: State, batch: Any) -> None:
        old = {name: param[...] for name, param in state.params.items()}
        params, _, metrics = workload.update(old, (), batch)
        for name, value in params.items():
            state.params[name][...] = value
        for name, value in metrics.items():
            state.total[name][...] += value

    params = workload.init()[0]
    state = State(params)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        for variable in state.total.values():
            variable[...] = jax.numpy.zeros(())
        for batch in batches:
            step(state, batch)
        jax.block_until_ready(nnx.state(state))
        total = {name: variable[...] for name, variable in state.total.items()}
        return workloads.means(total, len(batches))

    return run_epoch
