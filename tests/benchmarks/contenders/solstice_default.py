"""Solstice with its default callbacks, as in a terminal: a progress bar, logging and history."""

from typing import Any

from models import solstice as models
from workloads import Workload


def make(workload: Workload) -> Any:
    return models.make(workload, models.default_callbacks())
