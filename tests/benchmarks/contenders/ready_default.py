"""A ready-made Experiment with the default callbacks, as in a terminal."""

from typing import Any

from models import ready
from models.solstice import default_callbacks
from workloads import Workload


def make(workload: Workload) -> Any:
    return ready.make(workload, default_callbacks())
