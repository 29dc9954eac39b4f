"""The training alone: a hand-written Experiment in `fit`, from batches in memory."""

from typing import Any

from models import solstice as models
from workloads import Workload


def make(workload: Workload) -> Any:
    return models.make(workload, [])
