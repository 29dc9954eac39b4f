"""Steps that cannot be compiled run as they are, with one warning that names the line."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice._engine._eager import line_of
from solstice.callbacks import Logging


class Branching(solstice.Experiment):
    """Branches on a value, and calls NumPy."""

    total: Any

    def train_step(self, batch: Any) -> Any:
        mean = np.asarray(batch).mean() if self.total < 5 else jnp.float32(0)
        return solstice.replace(self, total=self.total + mean), {"mean": mean}

    def eval_step(self, batch: Any) -> Any:
        return self, {"mean": float(np.asarray(batch).max())}

    def predict_step(self, batch: Any) -> Any:
        return np.sort(np.asarray(batch))


BATCHES = [np.float32([1, 3]), np.float32([4, 4]), np.float32([9])]


@pytest.mark.filterwarnings("ignore:.*cannot be compiled")
def test_a_step_that_branches_on_a_value_trains_as_a_plain_loop_does():
    logged: list[Any] = []
    trainer = solstice.Trainer([Logging(lambda metrics, step: logged.append(metrics))])
    trained = trainer.fit(Branching(np.float32(0)), BATCHES, BATCHES, num_epochs=1)
    assert trained.total == 2 + 4
    # Over five examples: two of mean 2, two of mean 4, and one that was not looked at.
    assert logged[0] == {"train/mean": pytest.approx((2 * 2 + 2 * 4 + 0) / 5)}
    assert logged[1] == {"val/mean": pytest.approx((2 * 3 + 2 * 4 + 9) / 5)}


def test_the_warning_names_the_line():
    with pytest.warns(UserWarning, match=r"Branching\.train_step.*test_eager\.py.*np\.asarray"):
        solstice.Trainer().fit(Branching(np.float32(0)), BATCHES)


def test_a_line_of_a_library_is_named_where_there_is_no_other():
    code = "def read():\n try:\n  float('x')\n except ValueError as error:\n  return error"
    found: dict[str, Any] = {}
    exec(compile(code, "/site-packages/lib.py", "exec"), found)
    assert "ValueError at /site-packages/lib.py:3" in line_of(found["read"]())


@pytest.mark.filterwarnings("ignore:.*cannot be compiled")
def test_predictions_are_those_of_the_plain_step():
    found = list(solstice.Trainer().predict(Branching(np.float32(0)), BATCHES))
    assert [list(outputs) for outputs in found] == [[1, 3], [4, 4], [9]]


@pytest.mark.filterwarnings("ignore:.*cannot be compiled")
def test_explain_says_so(capsys: pytest.CaptureFixture[str]):
    trainer = solstice.Trainer()
    trainer.fit(Branching(np.float32(0)), BATCHES)
    print(trainer.explain())
    assert "1 steps a call: the step cannot be compiled" in capsys.readouterr().out
