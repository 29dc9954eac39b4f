"""The public check of resuming: it passes what is right, and finds each planted fault."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice._engine import CompiledStepper
from solstice.callbacks import EarlyStopping, History
from solstice.compat import EquinoxModel
from solstice.data import batches
from solstice.testing import Run, Sgd, verify_resume

pytest.importorskip("safetensors")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 4)).astype(np.float32)
Y = RNG.integers(0, 2, 20)
KILL_AT = [3]
"""Within the first of two epochs of 5 steps."""

pytestmark = pytest.mark.slow  # a process takes seconds to begin


def experiment():
    net = EquinoxModel(
        lambda key: eqx.nn.Sequential(
            [eqx.nn.Linear(4, "scalar", key=key), eqx.nn.Lambda(jnp.tanh)],
        )
    )
    return solstice.BinaryClassificationExperiment(net, Sgd(0.5))


def run(callbacks=(), train_ds=None, exp=None):
    ds = batches((X, Y), 4, shuffle=True) if train_ds is None else train_ds
    return Run(exp or experiment(), ds, [(X, Y)], callbacks, num_epochs=2)


def right():
    return run([History(every=2), EarlyStopping(patience=5)])


class Noisy(solstice.Experiment):
    """Its key is kept beside it, so that no checkpoint has it."""

    weight: jax.Array
    source = np.random.default_rng(0)

    def train_step(self, batch):
        noise = float(self.source.normal()) + 0.0 * float(batch[0][0, 0])
        return solstice.replace(self, weight=self.weight + noise), None

    def eval_step(self, batch):
        return self, {"loss": self.weight}


def a_key_that_is_dropped():
    return run(exp=Noisy(jnp.zeros(())))


class Again:
    """Its state is that of the batch before."""

    def __iter__(self):
        return Stepping()


class Stepping:
    def __init__(self):
        self.index = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.index == 5:
            raise StopIteration
        self.index += 1
        rows = slice(self.index * 4 - 4, self.index * 4)
        return X[rows], Y[rows]

    def state_dict(self):
        return {"index": self.index - 1}

    def load_state_dict(self, state):
        self.index = state["index"]


def one_batch_again():
    return run(train_ds=Again())


class Average(solstice.Callback):
    """An average of the weights, of which no checkpoint hears."""

    every = 1
    needs = ("experiment",)

    def __init__(self):
        self.average = np.zeros(4, np.float32)

    def on_step_end(self, record):
        if record.mode == "train":
            weight = np.asarray(record.experiment.params.layers[0].weight)[0]
            self.average = 0.9 * self.average + 0.1 * weight


def an_average_that_is_lost():
    return run([Average()])


class Forgets(EarlyStopping):
    def load_state_dict(self, state):
        self.best = None


def a_callback_that_forgets():
    return run([Forgets(mode="max", patience=5)])


def a_window_of_metrics_that_is_lost():
    """As though the engine forgot the metrics of the epoch so far."""
    restore = CompiledStepper.restore

    def without(self, experiment, totals):
        restore(self, experiment, [None] * len(totals))

    CompiledStepper.restore = without
    return run()


def too_short():
    return Run(experiment(), batches((X, Y), 4), max_steps=2)


def broken():
    raise OSError("the data are gone")


def test_a_run_that_is_right_passes():
    verify_resume(right, kill_at=[3, 5])


@pytest.mark.parametrize(
    ("make_run", "kill_at", "message"),
    [
        (
            a_key_that_is_dropped,
            3,
            r"killed at step 3 and resumed ended differently: `\.weight` of",
        ),
        (one_batch_again, 3, "of the Experiment|at step 6"),
        (an_average_that_is_lost, 3, r"Average\.average is"),
        (a_callback_that_forgets, 6, r"Forgets\.best"),
        (a_window_of_metrics_that_is_lost, 3, "train metrics of epoch 1 at step 5"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*cannot be compiled")
def test_each_planted_fault_is_found(make_run, kill_at, message):
    with pytest.raises(AssertionError, match=message):
        verify_resume(make_run, [kill_at])


def test_what_cannot_be_run_is_told():
    with pytest.raises(RuntimeError, match="the run ended before step 3"):
        verify_resume(too_short, KILL_AT)
    with pytest.raises(RuntimeError, match="the data are gone"):
        verify_resume(broken, KILL_AT)
    with pytest.raises(TypeError, match="a function at the top of a module"):
        verify_resume(lambda: right(), KILL_AT)
