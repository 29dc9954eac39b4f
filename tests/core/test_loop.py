"""The loop in view: how deep a hook is called."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice


class Sum(solstice.Experiment):
    total: jax.Array

    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch), {"total": self.total}

    def eval_step(self, batch):
        return self, {"total": self.total + batch}


class Depth(solstice.Callback):
    """Notes the functions from `Trainer.fit` to each hook of a validation."""

    def __init__(self):
        self.paths = {}

    def _note(self, hook, record):
        names = [frame.function for frame in inspect.stack()[2:]]
        if record.mode == "val":
            self.paths[hook] = names[: names.index("fit") + 1][::-1]

    def on_epoch_start(self, record):
        self._note("on_epoch_start", record)

    def on_step_end(self, record):
        self._note("on_step_end", record)

    def on_epoch_end(self, record):
        self._note("on_epoch_end", record)


@pytest.mark.parametrize("every", [None, 2])
def test_a_hook_of_validation_is_near_to_fit(every: int | None):
    depth = Depth()
    data = [np.float32(1)] * 4
    trainer = solstice.Trainer([depth], val_every_n_steps=every)
    trainer.fit(Sum(jnp.zeros(())), data, data)
    assert depth.paths.keys() == {"on_epoch_start", "on_step_end", "on_epoch_end"}
    for path in depth.paths.values():
        assert path[:3] == ["fit", "train", "evaluate"]
        assert len(path) <= 5, path
