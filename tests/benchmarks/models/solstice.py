"""An Experiment written by hand: `exp = Training(workload)`."""

import io
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from workloads import Workload

import solstice


class Training(solstice.Experiment):
    params: Any
    opt_state: Any
    workload: Workload = eqx.field(static=True)

    def __init__(self, workload: Workload) -> None:
        self.params, self.opt_state = workload.init()
        self.workload = workload

    def train_step(self, batch: Any) -> Any:
        params, opt_state, metrics = self.workload.update(self.params, self.opt_state, batch)
        return solstice.replace(self, params=params, opt_state=opt_state), metrics

    def eval_step(self, batch: Any) -> Any:
        loss, accuracy = self.workload.loss(self.params, batch)
        return self, {"loss": loss, "accuracy": accuracy}

    def predict_step(self, batch: Any) -> Any:
        return jax.nn.softmax(self.workload.logits(self.params, batch))


class Last(solstice.Callback):
    """Keeps the metrics of the last epoch, and of the validation after it as "val_loss", ..."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def on_epoch_end(self, record: solstice.Record) -> None:
        start = "val_" if record.mode == "val" else ""
        for name in ("loss", "accuracy"):
            # The mean of the members of a population, which all do the same here.
            self.metrics[start + name] = float(np.mean(record.metrics[name]))


class Terminal(io.StringIO):
    """Takes what is written and drops it, as a terminal that nobody looks at."""

    def write(self, text: str) -> int:
        return len(text)

    def isatty(self) -> bool:
        return True


def default_callbacks() -> list[solstice.Callback]:
    """A progress bar, logging and history, which keep what they show."""
    lines: list[Any] = []
    return [
        solstice.callbacks.ProgressBar(file=Terminal()),
        solstice.callbacks.Logging(lambda metrics, step: lines.append((metrics, step))),
        solstice.callbacks.History(),
    ]


def make(
    workload: Workload,
    callbacks: Sequence[solstice.Callback],
    *,
    donate: bool = False,
    **options: Any,
) -> Any:
    """`run_epoch = make(workload, callbacks)`: each run is one `fit`, with all that it costs."""
    return repeated_fit(workload, callbacks, Training(workload), donate=donate, **options)


def repeated_fit(
    workload: Workload,
    callbacks: Sequence[solstice.Callback],
    experiment: Any,
    *,
    donate: bool = False,
    **options: Any,
) -> Any:
    """`run_epoch = repeated_fit(workload, callbacks, exp)`: each `fit` goes on from the last."""
    last = Last()
    trainer = solstice.Trainer(callbacks=[*callbacks, last], **options)

    def run_epoch(batches: Any, first: bool | None = None) -> dict[str, float]:
        nonlocal experiment
        if first is None:
            first = len(batches) == 1  # the first step, without a validation
        experiment = trainer.fit(
            experiment,
            batches,
            None if first or not workload.validation else workload.validation,
            num_epochs=1 if first else workload.epochs,
            donate=donate,
        )
        return last.metrics

    return run_epoch
