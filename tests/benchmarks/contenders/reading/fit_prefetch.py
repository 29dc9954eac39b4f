"""As `fit`, with a thread of Solstice's that reads up to 4 batches ahead."""

from typing import Any

from contenders.reading import fit
from workloads import Workload


def make(workload: Workload) -> Any:
    return fit.make(workload, prefetch=4)
