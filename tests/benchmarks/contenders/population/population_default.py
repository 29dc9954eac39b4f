"""A population, with the default callbacks."""

from typing import Any

from models import population
from models import solstice as models
from workloads import Workload


def make(workload: Workload) -> Any:
    return population.make_population(workload, models.default_callbacks())
