"""A ready-made Experiment without callbacks, its data placed on the device once."""

from typing import Any

from models import ready
from workloads import Workload


def make(workload: Workload) -> Any:
    return ready.make_resident(workload, [])
