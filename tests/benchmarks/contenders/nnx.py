"""Flax NNX as its documentation shows it: `nnx.jit`, `nnx.Optimizer`, `nnx.MultiMetric`."""

from typing import Any

import jax
import workloads
from flax import nnx
from models import nnx as models
from workloads import Workload


@nnx.jit
def train_step(model: Any, optimizer: Any, metrics: Any, batch: Any) -> None:
    x, y = batch

    def loss_fn(model: Any) -> Any:
        logits = model(x)
        return workloads.loss_and_accuracy(logits, y)[0], logits

    (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
    metrics.update(loss=loss, logits=logits, labels=y)
    optimizer.update(model, grads)


def make(workload: Workload) -> Any:
    model = models.build(workload)
    optimizer = nnx.Optimizer(model, workloads.optimizer(), wrt=nnx.Param)
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        for batch in batches:
            train_step(model, optimizer, metrics, batch)
        jax.block_until_ready(nnx.state(model))
        values = {name: float(value) for name, value in metrics.compute().items()}
        metrics.reset()
        return values

    return run_epoch
