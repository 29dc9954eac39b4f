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


class Doubles(solstice.Experiment):
    def predict_step(self, batch):
        return {"twice": batch * 2, "name": "double"}

    train_step = eval_step = None


class Fails(solstice.Callback):
    """Fails after the sixth batch."""

    every = 1

    def on_step_end(self, record):
        if record.epoch_step == 6:
            raise ArithmeticError("of a hook")


@pytest.mark.parametrize("steps_per_call", [1, 2, 4])
@pytest.mark.parametrize(
    ("error", "callbacks", "count"),
    [(OSError, [], 7), (ArithmeticError, [Fails()], 6)],
    ids=["of the data set", "of a hook"],
)
def test_an_error_comes_after_the_predictions_before_it(
    steps_per_call: int, error: type[Exception], callbacks: list[solstice.Callback], count: int
):
    def batches():
        for number in range(7):
            yield np.float32(number)
        raise OSError("of the data set")

    trainer, found = solstice.Trainer(callbacks, steps_per_call=steps_per_call), []
    with pytest.raises(error):
        found.extend(trainer.predict(Doubles(), batches()))
    assert found == [{"twice": 2.0 * number, "name": "double"} for number in range(count)]
