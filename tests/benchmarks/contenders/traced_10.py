"""The same, with the state hashed after each tenth step."""

from typing import Any

from contenders import traced
from workloads import Workload


def make(workload: Workload) -> Any:
    return traced.make(workload, every=10)
