"""History: a row for each epoch, evaluation and span of steps."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice.callbacks import History


class Mean(solstice.Experiment):
    def train_step(self, batch):
        return self, {"loss": jnp.mean(batch)}

    def eval_step(self, batch):
        return self, {"loss": -jnp.mean(batch)}


def some(values):
    return [np.full(1, value, np.float32) for value in values]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 2), st.integers(1, 5))
def test_rows_say_what_numpy_says(values, num_epochs, every):
    history = History(every=every)
    solstice.Trainer([history]).fit(Mean(), some(values), some([7]), num_epochs=num_epochs)
    seen = np.float32(values * num_epochs)
    for row in history.rows:
        moment = (row["mode"], row["span"])
        first = {
            ("train", "epoch"): row["step"] - len(values),
            ("train", "steps"): row["step"] - every,
        }
        expected = -7 if row["mode"] == "val" else seen[first[moment] : row["step"]].mean()
        np.testing.assert_allclose(row["loss"], expected, rtol=1e-6)
    spans = [row["span"] for row in history.rows if row["mode"] == "train"]
    assert spans.count("epoch") == num_epochs
    assert spans.count("steps") == len(seen) // every


def test_a_new_run_begins_anew_and_a_test_is_added():
    history = History()
    trainer = solstice.Trainer([history])
    trainer.fit(Mean(), some([1]))
    trainer.fit(Mean(), some([2]))
    trainer.test(Mean(), some([3]))
    assert history.rows == [
        {"step": 1, "epoch": 0, "mode": "train", "span": "epoch", "loss": 2.0},
        {"step": 0, "epoch": 0, "mode": "test", "span": "epoch", "loss": -3.0},
    ]
    assert repr(history) == "History(2 rows)"


def test_what_was_not_seen_has_no_row():
    class StopAtOnce(solstice.Callback):
        def on_fit_start(self, record):
            raise solstice.Stop("at once")

    history = History()
    solstice.Trainer([history, StopAtOnce()]).fit(Mean(), some([1]))
    assert history.rows == []
