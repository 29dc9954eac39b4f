"""Solstice without callbacks, timed within one `fit`: the second of two epochs.

The others pay for the beginning and the end of a `fit` in each epoch; this one tells how much.
"""

import time
from collections.abc import Sequence
from typing import Any

from models.solstice import Training
from workloads import Workload

import solstice


class Clock(solstice.Callback):
    """The seconds and the metrics of the last epoch."""

    def on_epoch_start(self, record: solstice.Record) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, record: solstice.Record) -> None:
        self.seconds = time.perf_counter() - self.began
        self.metrics = record.metrics


def make(workload: Workload, callbacks: Sequence[solstice.Callback] = ()) -> Any:
    clock = Clock()
    trainer = solstice.Trainer(callbacks=[clock, *callbacks])
    experiment = Training(workload)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        nonlocal experiment
        epochs = 1 if len(batches) == 1 else 2  # one batch alone is the first step
        experiment = trainer.fit(experiment, batches, num_epochs=epochs)
        return {**clock.metrics, "seconds": clock.seconds}

    return run_epoch
