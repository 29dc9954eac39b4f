"""A hand-written Experiment in `fit`, from the data set."""

from typing import Any

from models import loaders
from models import solstice as models
from workloads import Workload


def make(workload: Workload, **options: Any) -> Any:
    fit = models.make(workload, [], **options)
    return lambda batches: fit(loaders.make(workload, batches), first=len(batches) == 1)
