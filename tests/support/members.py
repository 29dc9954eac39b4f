"""An Experiment whose metrics per member are its data."""

import jax
import jax.numpy as jnp
import numpy as np

import solstice
from solstice import metrics


def _metrics_of(values):
    matrix = metrics.ConfusionMatrix(jnp.zeros(2, int), jnp.zeros(2, int), 2)
    return metrics.MetricsCollection(
        loss=metrics.Mean(values), accuracy=metrics.Mean(-values), pairs=matrix
    )


class Members(solstice.Experiment):
    """Of a batch [n, members], the loss of each member is the mean of its column."""

    steps: jax.Array

    def __init__(self):
        self.steps = jnp.zeros(())

    def train_step(self, batch):
        return solstice.replace(self, steps=self.steps + 1), self.eval_step(batch)[1]

    def eval_step(self, batch):
        return self, metrics.Mapped(jax.vmap(_metrics_of)(batch.T))


def epochs_of(values):
    """A data set whose epoch t has the losses `values[t]` of the members, in one batch."""
    return lambda epoch: [np.float32([values[epoch]])]


def fitted(callbacks, train, val=None):
    """The Trainer after a fit, and the number of its epochs."""
    trainer = solstice.Trainer(callbacks)
    val_ds = None if val is None else epochs_of(val)
    trained = trainer.fit(Members(), epochs_of(train), val_ds, num_epochs=len(train))
    return trainer, int(trained.steps)
