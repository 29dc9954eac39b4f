"""An Experiment written by hand in `trainer.test`, without callbacks."""

from typing import Any

from models import solstice as models
from workloads import Workload

import solstice


def make(workload: Workload) -> Any:
    trainer = solstice.Trainer()
    experiment = models.Training(workload)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        return trainer.test(experiment, batches)

    return run_epoch
