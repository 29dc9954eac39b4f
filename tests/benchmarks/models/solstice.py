"""An Experiment written by hand: `exp = Training(workload)`."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
from workloads import Workload

import solstice


class Training(solstice.Experiment):
    params: Any
    opt_state: Any
    workload: Workload = eqx.field(static=True)

    def __init__(self, workload: Workload) -> None:
        self.params, self.opt_state = workload.init()
        self.workload = workload

    def train_step(self, batch: Any) -> Any:
        params, opt_state, metrics = self.workload.update(self.params, self.opt_state, batch)
        return solstice.replace(self, params=params, opt_state=opt_state), metrics

    def eval_step(self, batch: Any) -> Any:
        loss, accuracy = self.workload.loss(self.params, batch)
        return self, {"loss": loss, "accuracy": accuracy}


class Last(solstice.Callback):
    """Keeps the metrics of the last epoch."""

    metrics: dict[str, float]

    def on_epoch_end(self, record: solstice.Record) -> None:
        self.metrics = record.metrics


def make(workload: Workload, callbacks: Sequence[solstice.Callback]) -> Any:
    """`run_epoch = make(workload, callbacks)`: an epoch is one `fit`, with all that it costs."""
    last = Last()
    trainer = solstice.Trainer(callbacks=[*callbacks, last])
    experiment = Training(workload)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        nonlocal experiment
        experiment = trainer.fit(experiment, batches, num_epochs=1)
        return last.metrics

    return run_epoch
