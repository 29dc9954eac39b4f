"""Population: many members of one Experiment in one program."""

import equinox as eqx
import jax
import numpy as np
import optax

import solstice
from solstice.compat import EquinoxModel

RATES = np.array([0.03, 0.02, 0.01], np.float32)
SEEDS = np.arange(3)


def labelled(size=96, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 4)).astype(np.float32)
    return x, (x @ rng.normal(size=(4, 3))).argmax(1).astype(np.int32)


class Net(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key, rate=0.2):
        one, two = jax.random.split(key)
        # No bias, whose gradient under BatchNorm would be rounding errors alone.
        self.first = eqx.nn.Linear(4, 8, use_bias=False, key=one)
        self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(rate)
        self.last = eqx.nn.Linear(8, 3, key=two)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.first(x), state)
        return self.last(self.dropout(jax.nn.relu(x), key=key)), state


NET = EquinoxModel(lambda key: eqx.nn.make_with_state(Net)(key))


def make(rate, seed):
    optimizer = optax.sgd(rate, momentum=0.9)
    return solstice.ClassificationExperiment(NET, optimizer, num_classes=3, seed=seed)


def batches(size=96, **options):
    return solstice.data.batches(labelled(size), 16, **options)


def series(trainer, name):
    mode, _, metric = name.partition("/")
    return np.array([row[metric] for row in trainer.history.rows if row["mode"] == mode])


def test_each_member_is_its_run_alone():
    train_ds, val_ds = batches(shuffle=True, seed=1), solstice.data.batches(labelled(40, 1), 16)
    trainer = solstice.Trainer()
    pop = trainer.fit(
        solstice.Population(make, rate=RATES, seed=SEEDS), train_ds, val_ds, num_epochs=34
    )
    for i in range(3):
        alone = solstice.Trainer()
        exp = alone.fit(make(RATES[i], SEEDS[i]), train_ds, val_ds, num_epochs=34)
        assert int(exp.step) == 204
        for name in ("train/loss", "val/loss", "val/accuracy", "val/f1_macro"):
            np.testing.assert_allclose(
                series(trainer, name)[:, i], series(alone, name), rtol=0, atol=1e-6
            )
        for one, other in zip(
            jax.tree.leaves((exp.params, exp.state)),
            jax.tree.leaves((pop[i].params, pop[i].state)),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)
