"""Flax Linen as its documentation shows it: a `TrainState`, one jitted step, losses in a list."""

from typing import Any

import jax
import numpy as np
import workloads
from flax.training.train_state import TrainState
from models import linen
from workloads import Workload


@jax.jit
def train_step(state: TrainState, batch: Any) -> Any:
    x, y = batch

    def loss_fn(params: Any) -> Any:
        return workloads.loss_and_accuracy(state.apply_fn({"params": params}, x), y)

    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), loss, accuracy


def make(workload: Workload) -> Any:
    state = TrainState.create(
        apply_fn=linen.build(workload).apply,
        params=jax.tree.map(jax.numpy.array, workload.params),
        tx=workloads.optimizer(),
    )

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        nonlocal state
        losses, accuracies = [], []
        for batch in batches:
            state, loss, accuracy = train_step(state, batch)
            losses.append(loss)
            accuracies.append(accuracy)
        jax.block_until_ready(state.params)
        return {"loss": float(np.mean(losses)), "accuracy": float(np.mean(accuracies))}

    return run_epoch
