"""A run with one logger, which kills itself: `python run_one.py LOGGER FOLDER KILL_AT`.

A negative KILL_AT ends it by an exception. At the end it prints what the logger says of itself, as
JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import solstice
from solstice import loggers
from solstice.callbacks import Checkpoint


class Mean(solstice.Experiment):
    total: Any
    key: Any

    def __init__(self):
        self.key = jax.random.key(0)
        self.total = jnp.zeros(())

    def train_step(self, batch):
        total = self.total + jnp.mean(batch)
        return solstice.replace(self, total=total), {"loss": total, "size": 2.5 * total}

    def eval_step(self, batch):
        return self, {"loss": self.total * jnp.mean(batch)}


class Kill(solstice.Callback):
    """After all others at a step, the checkpoint too; by an exception below 0."""

    order = 9

    def __init__(self, at, checkpoint):
        self.at = at
        self.checkpoint = checkpoint

    def on_step_end(self, record):
        if record.mode == "train" and record.step == -self.at:
            raise RuntimeError("as asked")
        if record.mode == "train" and record.step == self.at:
            _ = self.checkpoint.last  # when it is on the disk
            os.kill(os.getpid(), signal.SIGKILL)


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


def main(name, folder, kill_at):
    folder = Path(folder)
    logger = make(name, folder)
    checkpoint = Checkpoint(folder / "runs", every=5, every_epochs=None)
    data = [np.full(2, value, np.float32) for value in range(4)]
    trainer = solstice.Trainer([logger, checkpoint, Kill(int(kill_at), checkpoint)])
    trainer.fit(Mean(), data, data[1:2], num_epochs=4, resume="last")
    print(json.dumps({"about": logger.about(), "rows": trainer.history.rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
