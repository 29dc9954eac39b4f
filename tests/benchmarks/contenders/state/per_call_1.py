"""An Experiment written by hand, without callbacks, in calls of at most one step."""

from typing import Any

from models import solstice as models
from workloads import Workload


def make(workload: Workload) -> Any:
    return models.make(workload, [], steps_per_call=1)
