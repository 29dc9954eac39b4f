"""A ready-made Experiment in `trainer.test`, without callbacks."""

from typing import Any

from models import ready
from workloads import Workload

import solstice


def make(workload: Workload) -> Any:
    trainer = solstice.Trainer()
    experiment = ready.build(workload)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        return trainer.test(experiment, batches)

    return run_epoch
