"""32 members of a workload: one `fit` after the other, or one `fit` of a Population."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optax
from models import ready
from models import solstice as models
from workloads import LEARNING_RATE, NotHereError, Workload

import solstice

MEMBERS = 32


def make_fits(workload: Workload, callbacks: Sequence[solstice.Callback]) -> Any:
    """`run_epoch = make_fits(workload, [])`: `fit` for each, of one model and one optimiser."""
    first = ready.build(workload)
    fits = [models.repeated_fit(workload, callbacks, first) for _ in range(MEMBERS)]

    def run_epoch(batches: Any) -> dict[str, float]:
        # All share a program, so the first step compiles it once.
        return [fit(batches) for fit in fits][-1]

    return run_epoch


def make_population(workload: Workload, callbacks: Sequence[solstice.Callback]) -> Any:
    """`run_epoch = make_population(workload, [])`: one `fit` of all members."""
    if not hasattr(solstice, "Population"):
        raise NotHereError("this version of Solstice has no Population")
    model, classes = ready.Pure(workload), workload.classes

    def make(rate: Any, seed: Any) -> Any:
        return solstice.ClassificationExperiment(model, optax.adam(rate), classes, seed=seed)

    rates = np.full(MEMBERS, LEARNING_RATE, np.float32)
    pop = solstice.Population(make, rate=rates, seed=range(MEMBERS))
    return models.repeated_fit(workload, callbacks, pop)
