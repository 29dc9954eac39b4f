"""Solstice with a callback that reads the outputs of every step."""

from typing import Any

from models import solstice as models
from workloads import Workload

import solstice


class Losses(solstice.Callback):
    every = 1
    needs = ("outputs",)

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step_end(self, record: solstice.Record) -> None:
        self.losses.append(float(record.outputs["loss"]))


def make(workload: Workload) -> Any:
    return models.make(workload, [Losses()])
