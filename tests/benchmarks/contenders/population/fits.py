"""One `fit` after the other, without callbacks."""

from typing import Any

from models import population
from workloads import Workload


def make(workload: Workload) -> Any:
    return population.make_fits(workload, [])
