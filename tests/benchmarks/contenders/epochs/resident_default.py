"""A ready-made Experiment with the default callbacks, its data placed on the device once."""

from typing import Any

from models import ready
from models.solstice import default_callbacks
from workloads import Workload


def make(workload: Workload) -> Any:
    return ready.make_resident(workload, default_callbacks())
