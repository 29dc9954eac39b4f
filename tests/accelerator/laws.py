"""The part "laws": the trained bits and the metrics do not depend on how a run is cut or fed."""

import hashlib
import inspect
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from models import ready
from models.solstice import Last, Training, default_callbacks

import solstice

Law = Callable[[], "bool | str"]


class EachStep(solstice.Callback):
    """Reads the outputs of every step."""

    every = 1
    needs = ("outputs",)

    def on_step_end(self, record: solstice.Record) -> None:
        jax.block_until_ready(record.outputs)


def run(task: Any) -> None:
    if task.name == "unset":
        repeat_without_flag(task)
        return
    laws = {"by hand, A": ("A", Training), "ready-made, A": ("A", ready.build)}
    if not task.small:
        laws["ready-made, D"] = ("D", ready.build)
    for name, (of, build) in laws.items():
        workload = task.workload(of)
        batches = workload.batches[:40]
        batches = batches if build is Training else ready.batches_of(workload, batches)
        laws_of = Laws(build(workload), batches)
        for what, law in laws_of.all().items():
            task.check(f"the same bits, {name}: {what}", law)
        task.add(f"two epochs of {name}", value=laws_of.time())


def repeat_without_flag(task: Any) -> None:
    """Whether convolutions give the same bits twice without XLA's flag, which is not a law."""
    workload = task.workload("D")
    batches = ready.batches_of(workload, workload.batches[:40])
    laws = Laws(ready.build(workload), batches)
    task.add("the same bits twice, ready-made, D", value="yes" if laws.holds()() else "no")
    task.add("two epochs of ready-made, D", value=laws.time())


class Laws:
    """The laws of one Experiment on some batches."""

    def __init__(self, experiment: Any, batches: list[Any]) -> None:
        self.experiment, self.batches = experiment, batches
        self.expected = self.train()

    def all(self) -> dict[str, Law]:
        """Each law by what it says."""
        cut = {f"steps_per_call={n}": self.holds(steps_per_call=n) for n in (1, 3, 16)}
        return {
            "a second time": self.holds(),
            **cut,
            "a callback at each step": self.holds([EachStep()]),
            "the default callbacks": self.holds(default_callbacks()),
            "prefetch=4": self.holds(prefetch=4),
            "a generator function": self.generated,
            "stopped and resumed": self.resumed,
            "data on the device": self.resident,
        }

    def holds(self, callbacks: Sequence[solstice.Callback] = (), **options: Any) -> Law:
        return lambda: self.train(callbacks, **options) == self.expected

    def train(
        self,
        callbacks: Sequence[solstice.Callback] = (),
        data: Any = None,
        *,
        max_steps: int | None = None,
        resume: str | None = None,
        **options: Any,
    ) -> tuple[str, dict[str, float]]:
        """The digest of the trained state, and the metrics of the last epoch."""
        last = Last()
        trainer = solstice.Trainer([*callbacks, last], **options)
        data = self.batches if data is None else data
        trained = trainer.fit(
            self.experiment, data, num_epochs=2, max_steps=max_steps, resume=resume
        )
        return digest(trained), last.metrics

    def time(self) -> str:
        """The time of a compiled run, to see what XLA's flag costs."""
        began = time.perf_counter()
        self.train()
        return f"{1e3 * (time.perf_counter() - began):.0f} ms"

    def generated(self) -> bool:
        """Read from a function that makes an iterator."""
        return self.train(data=lambda: iter(self.batches)) == self.expected

    def resumed(self) -> bool | str:
        """Stopped within the second epoch."""
        try:
            import safetensors  # noqa: F401
        except ImportError:
            return "safetensors is not installed"
        stop = len(self.batches) + len(self.batches) // 2
        with tempfile.TemporaryDirectory() as folder:
            for max_steps in (stop, None):
                saves = solstice.callbacks.Checkpoint(folder, every=stop, every_epochs=None)
                found = self.train([saves], max_steps=max_steps, resume="last")
        return found == self.expected

    def resident(self) -> bool | str:
        """Placed on the device once, in the same order."""
        if "on_device" not in inspect.signature(solstice.data.Batches).parameters:
            return "not in this version"
        size = len(jax.tree.leaves(self.batches[0])[0])
        arrays = jax.tree.map(lambda *leaves: np.concatenate(leaves), *self.batches)
        data = solstice.data.batches(arrays, size, on_device=True)
        return self.train(data=data) == self.expected


def digest(experiment: Any) -> str:
    """The SHA-256 of all arrays of an Experiment."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(experiment):
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()
