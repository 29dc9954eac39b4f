"""An Experiment written by hand, without callbacks, in calls of at most 8 steps."""

from typing import Any

from models import solstice as models
from workloads import Workload


def make(workload: Workload) -> Any:
    return models.make(workload, [], steps_per_call=8)
