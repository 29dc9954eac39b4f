"""Dry runs: a run tried in a moment, overfitted, or its validation tried beforehand."""

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.callbacks import Checkpoint, Logging


class Count(solstice.Experiment):
    seen: object

    def __init__(self):
        self.seen = jnp.zeros(())

    def train_step(self, batch):
        return solstice.replace(self, seen=self.seen + jnp.sum(batch)), {"loss": jnp.mean(batch)}

    def eval_step(self, batch):
        return self, {"loss": jnp.mean(batch)}


class FailsToEvaluate(Count):
    def check_batch(self, batch):
        if batch[0] < 0:
            raise solstice.DataError("a negative batch")


def some(*values):
    return [np.full(1, value, np.float32) for value in values]


@pytest.mark.parametrize(("fast", "batches"), [(True, 1), (2, 2)])
def test_a_fast_dev_run_tries_all_and_leaves_no_trace(tmp_path, fast, batches):
    lines = []
    callbacks = [
        Checkpoint(tmp_path / "runs"),
        solstice.loggers.CSV(tmp_path / "a.csv"),
        Logging(lambda metrics, step: lines.append((step, *metrics))),
    ]
    trainer = solstice.Trainer(callbacks, fast_dev_run=fast)
    exp = trainer.fit(
        Count(), some(1, 2, 3, 4), some(5, 6, 7), num_epochs=9, max_steps=99, resume="last"
    )
    assert float(exp.seen) == sum(range(1, batches + 1))
    assert lines == [(batches, "train/loss"), (batches, "val/loss")]
    assert trainer.history.series("val/loss")[1] == [np.mean([5, 6, 7][:batches])]
    assert list(tmp_path.iterdir()) == []


def test_no_fast_dev_run_by_default():
    trained = solstice.Trainer(fast_dev_run=False).fit(Count(), some(1, 2, 3))
    assert float(trained.seen) == 6
    with pytest.raises(ValueError, match="fast_dev_run must be 1 or more"):
        solstice.Trainer(fast_dev_run=-1)


def test_overfitting_trains_on_the_same_batches_in_the_same_order():
    seen = []

    class Watch(solstice.Callback):
        needs = ("batch",)

        def on_step_end(self, record):
            if record.mode == "train":
                seen.append(float(record.batch[0]))

    def data(epoch):
        return iter(some(*(10 * epoch + i for i in range(5))))

    trainer = solstice.Trainer([Watch()], overfit_batches=2)
    trainer.fit(Count(), data, some(7), num_epochs=3)
    assert seen == [0, 1] * 3
    assert trainer.history.series("val/loss")[1] == [7.0] * 3
    seen.clear()
    trainer.fit(Count(), np.arange(8, dtype=np.float32), batch_size=2, num_epochs=2)
    assert seen == [0, 2] * 2  # not shuffled either


def test_memory_that_a_data_set_uses_again_is_not_overfitted():
    memory = np.zeros(1, np.float32)

    def data():
        for value in (1, 2, 3):
            memory[:] = value
            yield memory

    trainer = solstice.Trainer(overfit_batches=2)
    exp = trainer.fit(Count(), data, num_epochs=2)
    assert float(exp.seen) == 2 * (1 + 2)


def test_a_sanity_validation_comes_before_the_first_step():
    told = []

    class Watch(solstice.Callback):
        def on_step_end(self, record):
            told.append(record.mode)

    bad = some(1, -1)
    with pytest.raises(solstice.DataError, match="negative"):
        solstice.Trainer([Watch()], sanity_val_batches=2).fit(FailsToEvaluate(), some(1), bad)
    assert told == []
    with pytest.raises(solstice.DataError, match="negative"):
        solstice.Trainer([Watch()], sanity_val_batches=1).fit(FailsToEvaluate(), some(1), bad)
    assert told[0] == "train"


def test_a_sanity_validation_changes_nothing():
    runs = []
    for batches in (None, 2):
        trainer = solstice.Trainer(sanity_val_batches=batches, val_every_n_steps=2)
        exp = trainer.fit(Count(), some(1, 2, 3), some(4, 5, 6), num_epochs=2)
        runs.append((float(exp.seen), trainer.history.rows))
    assert runs[0] == runs[1]
    generator = (batch for batch in some(1, 2))  # which can be read once
    trainer = solstice.Trainer(sanity_val_batches=1)
    trainer.fit(Count(), some(1), generator)
    assert trainer.history.series("val/loss")[1] == [1.5]
