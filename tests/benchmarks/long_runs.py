"""`nox -s bench_long_runs`: CPU time of an epoch with a checkpoint, by the length of the run.

An epoch is a step of a tiny Experiment and a row of 10 metrics in the history. One run is measured
where its history has 10, 500, 2,000 and 8,000 rows; rows are put in between, at no cost that is
measured. The ratio to the first line stays near 1 if a save costs the same in a run of any
length.
"""

import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import solstice
from solstice.callbacks import Checkpoint, History

ROWS = (10, 500, 2000, 8000)
EPOCHS, WARM = 40, 10
"""Epochs at each length, and those before them, which compile and write the rows put in."""


class Tiny(solstice.Experiment):
    w: jax.Array

    def train_step(self, batch):
        metrics = {f"metric_{index}": batch.mean() / (index + 3) for index in range(10)}
        return solstice.replace(self, w=self.w + batch.mean()), metrics

    def eval_step(self, batch):
        return self, {}


class Lengthens(solstice.Callback):
    """Puts rows into the history, and takes the CPU time of epochs and of their saving thread."""

    phase = solstice.Phase.SAVE
    every = None

    def __init__(self, history, folder):
        self.history, self.folder = history, folder
        self.seconds, self.bytes = [], []
        self._start = 0.0

    def on_epoch_start(self, record):
        index, within = divmod(record.epoch, WARM + EPOCHS)
        if within == 0:
            row = {"epoch": 0, "step": 0, "mode": "test", "span": "epoch"}
            row |= {f"metric_{i}": 1 / (i + 3) for i in range(10)}
            count = ROWS[index] - WARM - len(self.history)
            self.history.rows.extend({**row, "step": step} for step in range(count))
        if within == WARM:
            self._start = time.process_time()

    def on_epoch_end(self, record):
        if record.mode == "train" and (record.epoch + 1) % (WARM + EPOCHS) == 0:
            self.seconds.append((time.process_time() - self._start) / EPOCHS)
            manifests = sorted(self.folder.glob("step-*/manifest.json"))
            self.bytes.append(manifests[-1].stat().st_size)


def main():
    with tempfile.TemporaryDirectory() as place:
        folder, history = Path(place) / "a", History()
        watch = Lengthens(history, folder)
        trainer = solstice.Trainer([history, Checkpoint(folder), watch])
        epochs = len(ROWS) * (WARM + EPOCHS)
        trainer.fit(Tiny(jnp.zeros(3)), [np.ones(2, np.float32)], num_epochs=epochs)
    print(f"{'rows':>8}{'CPU ms an epoch':>18}{'ratio':>8}{'manifest, kB':>15}")
    for rows, seconds, size in zip(ROWS, watch.seconds, watch.bytes, strict=True):
        ratio = seconds / watch.seconds[0]
        print(f"{rows:8,}{1e3 * seconds:18.1f}{ratio:8.2f}{size / 1e3:15,.1f}")


if __name__ == "__main__":
    main()
