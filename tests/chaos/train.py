"""`python train.py flax-batches folder`: one training run, resumed if it was begun before.

Every run has Dropout, BatchNorm, a schedule, averaged weights, early stopping, a history and a
validation, or is a language model; it writes `result.json` when it has ended.
"""

import hashlib
import json
import sys
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import grain
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

import solstice
from solstice.callbacks import Checkpoint, EarlyStopping, History
from solstice.data import batches

RNG = np.random.default_rng(0)
X = RNG.normal(size=(403, 12)).astype(np.float32)
Y = (np.abs(X[:, 0]) + X[:, 1] > 1).astype(np.int32)
TOKENS = (RNG.integers(0, 7, (403, 1)) + np.arange(12) * RNG.integers(1, 3, (403, 1))) % 7
EPOCHS, SIZE = 12, 8


class FlaxNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(32)(x))
        return nn.Dense(2)(nn.Dropout(0.2, deterministic=not train)(nn.relu(x)))


def haiku_net(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(32)(x), is_training)
    x = jax.nn.relu(x)
    return hk.Linear(2)(hk.dropout(hk.next_rng_key(), 0.2, x) if is_training else x)


class EquinoxNet(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        self.first = eqx.nn.Linear(12, 32, key=key)
        self.norm = eqx.nn.BatchNorm(32, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.2)
        self.last = eqx.nn.Linear(32, 2, key=key)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.first(x), state)
        return self.last(self.dropout(jax.nn.relu(x), key=key)), state


class Writer(nn.Module):
    """Logits of the next token from the two before."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 16)(tokens)
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return nn.Dense(7)(nn.relu(nn.Dense(32)(jnp.concatenate([x, before], -1))))


def by_epoch(epoch):
    order = np.random.default_rng(epoch).permutation(len(X))
    for start in range(0, len(X), SIZE):
        yield X[order[start : start + SIZE]], Y[order[start : start + SIZE]]


def remembering():
    rng = np.random.default_rng(0)

    def epoch():
        order = rng.permutation(len(X))
        return ((X[r], Y[r]) for r in np.array_split(order, 50))

    return epoch


class Pairs:
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index], Y[index]


NETS = {
    "flax": FlaxNet,
    "haiku": lambda: hk.transform_with_state(haiku_net),
    "equinox": lambda: solstice.compat.EquinoxModel(eqx.nn.make_with_state(EquinoxNet)),
}
SOURCES = {
    "batches": lambda: batches((X, Y), SIZE, shuffle=True),
    "list": lambda: list(batches((X, Y), SIZE)),
    "grain": lambda: grain.MapDataset.source(Pairs()).seed(1).shuffle().batch(SIZE),
    "function": lambda: by_epoch,
    "remembering": remembering,
}
RUNS = [f"{net}-{source}" for net in NETS for source in SOURCES] + ["flax-text", "flax-members"]


def optimizer():
    steps = EPOCHS * -(-len(X) // SIZE)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 20, steps)
    return solstice.compat.ema(optax.adamw(schedule), 0.95)


def make(name):
    net, source = name.split("-")
    if source == "text":
        exp = solstice.LanguageModelExperiment(Writer(), optimizer(), 7)
        ds = grain.MapDataset.source(TOKENS.astype(np.int32)).seed(1).shuffle().batch(SIZE)
        return exp, ds, [TOKENS[:64]]
    if source == "members":
        return members(NETS[net]()), SOURCES["batches"](), [(X[:64], Y[:64])]
    exp = solstice.ClassificationExperiment(NETS[net](), optimizer(), 2)
    return exp, SOURCES[source](), [(X[:64], Y[:64])]


def members(net):
    """A population whose members stop early, are removed, and copy the best."""

    def made(rate, seed):
        return solstice.ClassificationExperiment(net, optax.adam(rate), 2, seed=seed)

    rules = {"patience": 4, "halving": (4, 0.6), "evolve": solstice.Evolve(2)}
    return solstice.Population(made, rate=jnp.geomspace(1e-3, 1e-1, 6), seed=range(6), **rules)


class Begun(solstice.Callback):
    """Says that training has begun: what is killed before that proves little."""

    every, phase = None, solstice.Phase.SAVE

    def on_fit_start(self, record):
        print("begun", flush=True)


def main(name, folder, *, keep):
    history, stopping = History(every=9), EarlyStopping(patience=EPOCHS, min_delta=1e-3)
    saves = Checkpoint(folder / "runs", every=13, minutes=0.001, keep=keep, monitor="val/loss")
    exp, train_ds, val_ds = make(name)
    trainer = solstice.Trainer([history, stopping, saves, Begun()])
    exp = trainer.fit(exp, train_ds, val_ds, num_epochs=EPOCHS, resume="last", strict_resume=True)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(exp):
        if isinstance(leaf, jax.Array):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    digest.update(repr([history.rows, stopping.state_dict()]).encode())
    new = folder / "result.new"
    new.write_text(json.dumps({"sha256": digest.hexdigest(), "loss": stopping.best}))
    new.rename(folder / "result.json")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), keep=int(sys.argv[3]))
