"""The part "placement": the state is on the device, and nothing goes there unasked."""

import numbers
from functools import partial
from typing import Any

import jax
from models import ready
from models.solstice import Training

import solstice


def run(task: Any) -> None:
    workload = task.workload("A")
    device = jax.devices()[0]
    for name, experiment in [
        ("by hand", Training(workload)),
        ("ready-made", ready.build(workload)),
    ]:
        batches = workload.batches[:40]
        check = partial(Placed, experiment, batches)
        task.check(f"{name}: the trained state is on {device}", lambda c=check: c().state())
        task.check(f"{name}: metrics are numbers on the host", lambda c=check: c().metrics())
        task.check(f"{name}: no implicit transfer in `fit`", lambda c=check: c().guarded())


class Placed:
    """The laws of placement for one Experiment."""

    def __init__(self, experiment: Any, batches: list[Any]) -> None:
        self.experiment, self.batches = experiment, batches
        self.trainer = solstice.Trainer()

    def state(self) -> bool:
        trained = self.trainer.fit(self.experiment, self.batches)
        arrays = [leaf for leaf in jax.tree.leaves(trained) if isinstance(leaf, jax.Array)]
        return all(array.devices() == {jax.devices()[0]} for array in arrays)

    def metrics(self) -> bool:
        trained = self.trainer.fit(self.experiment, self.batches)
        found = self.trainer.test(trained, self.batches)
        return all(isinstance(found[name], numbers.Number) for name in ("loss", "accuracy"))

    def guarded(self) -> bool | str:
        """The second `fit`, since the first also makes the constants of its programs."""
        if jax.devices()[0].platform == "cpu":
            return "not on the CPU"  # whose calls read the memory of the host in place
        trained = self.trainer.fit(self.experiment, self.batches, self.batches)
        with jax.transfer_guard("disallow"):
            self.trainer.fit(trained, self.batches, self.batches)
        return True
