"""Ready-made Experiments: `exp = ready.build(workload)`, of the workload's own functions."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import workloads
from models import solstice as models
from workloads import Workload

import solstice


class Pure:
    """A `solstice.compat.Model` of the workload's own functions, so that all compile the same."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def init(self, key: Any, x: Any) -> Any:
        return jax.tree.map(jax.numpy.array, self.workload.params), ()

    def forward(self, params: Any, state: Any, x: Any, *, train: bool, key: Any = None) -> Any:
        return self.workload.logits(params, x), state


jax.tree_util.register_static(Pure)


def build(workload: Workload) -> Any:
    """`exp = build(workload)`: a language model for a transformer, a classifier for all others."""
    model, optimizer = Pure(workload), workloads.optimizer()
    if workload.kind == "transformer":
        return solstice.LanguageModelExperiment(model, optimizer, vocabulary_size=workload.classes)
    return solstice.ClassificationExperiment(model, optimizer, num_classes=workload.classes)


def batches_of(workload: Workload, batches: list[Any]) -> list[Any]:
    """The batches as the Experiment takes them: texts with their last token for language models."""
    if workload.kind != "transformer":
        return batches
    return [np.concatenate([x, y[:, -1:]], axis=1) for x, y in batches]


def make(workload: Workload, callbacks: Sequence[solstice.Callback]) -> Any:
    """`run_epoch = make(workload, callbacks)`: as `models.solstice.make`."""
    fit = models.repeated_fit(workload, callbacks, build(workload))
    ready: dict[int, list[Any]] = {}

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        if len(batches) not in ready:  # beforehand: `worker.py` warms up before it takes times
            ready[len(batches)] = batches_of(workload, batches)
        return fit(ready[len(batches)])

    return run_epoch


def make_resident(workload: Workload, callbacks: Sequence[solstice.Callback]) -> Any:
    """`run_epoch = make_resident(workload, callbacks)`: as `make`, with the data on the device."""
    if "on_device" not in inspect.signature(solstice.data.Batches).parameters:
        raise workloads.NotHereError("this version of Solstice feeds all batches from the host")
    size = len(workload.batches[0][1])

    def placed(batches: list[Any]) -> Any:
        arrays = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
        return solstice.data.batches(arrays, size, on_device=True)

    batches, validation = batches_of(workload, workload.batches), workload.validation
    data = {n: placed(batches[:n]) for n in (1, len(batches))}
    resident = replace(workload, validation=placed(validation) if validation else [])
    fit = models.repeated_fit(resident, callbacks, build(workload))
    return lambda batches: fit(data[len(batches)])
