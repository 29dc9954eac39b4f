"""A run with one logger, which ends itself: `python run_one.py LOGGER FOLDER STEP HOW`.

HOW is SIGKILL, SIGTERM, or "error" for an exception; at step 0 it goes on to its end.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import solstice
from solstice import loggers, metrics
from solstice.callbacks import Checkpoint


class Mean(solstice.Experiment):
    total: Any
    key: Any

    def __init__(self):
        self.key = jax.random.key(0)
        self.total = jnp.zeros(())

    def train_step(self, batch):
        total = self.total + jnp.mean(batch)
        outputs = {"loss": total, "size": 2.5 * total, "all": of_members(total)}
        return solstice.replace(self, total=total), outputs

    def eval_step(self, batch):
        return self, {"loss": self.total * jnp.mean(batch)}


def of_members(total):
    """A metric of a population of three, the last of which is NaN."""
    each = jax.vmap(lambda x: metrics.MetricsCollection(each=metrics.Mean(x)))
    return metrics.Mapped(each(jnp.stack([total, 3 * total, total * jnp.nan])))


class Ends(solstice.Callback):
    """After all others at a step, the checkpoint too."""

    phase = solstice.Phase.SAVE

    def __init__(self, at, how, checkpoint):
        self.at, self.how = at, how
        self.checkpoint = checkpoint

    def on_step_end(self, record):
        if record.mode == "train" and record.step == self.at:
            if self.how == "error":
                raise RuntimeError("as asked")
            _ = self.checkpoint.last  # when it is on the disk
            os.kill(os.getpid(), signal.Signals[self.how])


def make(name, folder):
    options = {"every": 2}
    if name == "CSV":
        return loggers.CSV(folder / "a.csv", **options)
    if name == "JSONLines":
        return loggers.JSONLines(folder / "a.jsonl", **options)
    if name == "TensorBoard":
        hparams = {"rate": 0.5, "net": "mlp"}
        return loggers.TensorBoard(folder / "board", hparams=hparams, histograms=1, **options)
    if name == "MLflow":
        uri = f"sqlite:///{folder}/mlflow.db"
        return loggers.MLflow("digits", tracking_uri=uri, params={"rate": 0.5}, **options)
    return loggers.WandB(
        "digits", directory=folder, mode="offline", config={"rate": 0.5}, **options
    )


def main(name, folder, at, how):
    folder = Path(folder)
    logger = make(name, folder)
    checkpoint = Checkpoint(folder / "runs", every=5, every_epochs=None)
    data = [np.full(2, value, np.float32) for value in range(4)]
    given = {"net": {"width": 8}, "depth": 2}
    callbacks = [logger, checkpoint, Ends(int(at), how, checkpoint)]
    trainer = solstice.Trainer(callbacks, hyperparameters=given)
    trainer.fit(Mean(), data, data[1:2], num_epochs=4, resume="last")


if __name__ == "__main__":
    main(*sys.argv[1:])
