"""Prune against real studies of Optuna."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.callbacks import Checkpoint, Prune

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)

DATA = [np.ones(2, np.float32)] * 3


class Falls(solstice.Experiment):
    """Its loss falls by `rate` a step, from 1."""

    loss: jax.Array
    rate: jax.Array

    def train_step(self, batch):
        new = solstice.replace(self, loss=self.loss - self.rate)
        return new, {"loss": new.loss, "accuracy": 1 - new.loss}

    def eval_step(self, batch):
        return self, {"loss": self.loss, "accuracy": 1 - self.loss}


def begin(rate):
    return Falls(jnp.ones(()), jnp.float32(rate))


def study(direction="minimize", **options):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=1)
    return optuna.create_study(direction=direction, pruner=pruner, **options)


def optimized(monitor, rates, of=study, **options):
    """The trials of a study that takes these rates in turn."""

    def objective(trial):
        exp = begin(rates[trial.number])
        trained = solstice.Trainer([Prune(trial, monitor, **options)]).fit(
            exp, DATA, DATA, num_epochs=4
        )
        return float(trained.loss)

    found = of()
    found.optimize(objective, n_trials=len(rates))
    return [(trial.state.name, len(trial.intermediate_values)) for trial in found.trials]


@pytest.mark.parametrize("monitor", ["val/loss", "train/loss", "val/accuracy"])
def test_a_worse_trial_ends_after_the_warm_up(monitor):
    def of():
        return study("maximize" if "accuracy" in monitor else "minimize")

    expected = [("COMPLETE", 4), ("PRUNED", 2), ("COMPLETE", 4)]
    assert optimized(monitor, [0.02, 0.01, 0.05], of) == expected


def test_each_validation_within_an_epoch_is_reported():
    trial = study().ask()
    trainer = solstice.Trainer([Prune(trial)], val_every_n_steps=1)
    trainer.fit(begin(0.1), DATA, DATA, num_epochs=2)
    reported = trial.study.trials[0].intermediate_values
    assert list(reported) == list(range(6))
    np.testing.assert_allclose([*reported.values()], 1 - 0.1 * np.arange(1, 7), atol=1e-6)


def test_a_resumed_trial_reports_on(tmp_path):
    trial = study().ask()

    def fit(epochs):
        callbacks = [Prune(trial), Checkpoint(tmp_path / "run")]
        trainer = solstice.Trainer(callbacks)
        trainer.fit(begin(0.1), DATA, DATA, num_epochs=epochs, resume="last")

    fit(1)
    fit(3)
    assert list(trial.study.trials[0].intermediate_values) == [0, 1, 2]


@pytest.mark.parametrize(
    ("made", "line"),
    [
        ({"direction": "maximize"}, 'create_study(direction="minimize")'),
        ({"direction": None, "directions": ["minimize", "maximize"]}, "['minimize', 'maximize']"),
    ],
)
def test_a_study_of_another_direction_is_an_error_before_the_first_step(made, line):
    trial = study(**made).ask()
    with pytest.raises(ValueError, match="a smaller value is better") as raised:
        solstice.Trainer([Prune(trial)]).fit(begin(0.1), DATA, DATA)
    assert line in str(raised.value)
    assert trial.study.trials[0].intermediate_values == {}


def test_no_validation_is_an_error():
    with pytest.raises(ValueError, match="val_ds"):
        solstice.Trainer([Prune(study().ask())]).fit(begin(0.1), DATA)


def test_a_test_outside_of_the_trial_reports_nothing():
    trial = study().ask()
    trainer = solstice.Trainer([Prune(trial)])
    trainer.fit(begin(0.1), DATA, DATA, num_epochs=1)
    trainer.test(begin(0.1), DATA)
    assert len(trial.study.trials[0].intermediate_values) == 1
