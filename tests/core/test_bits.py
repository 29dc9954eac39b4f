"""What one looks at changes nothing: the same bits with any subset of the usual callbacks."""

import hashlib
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.callbacks import Checkpoint, History, Logging, Profiler, ProgressBar, Trace

pytestmark = pytest.mark.bits


class Noisy(solstice.Experiment):
    params: Any
    momentum: Any
    key: Any

    def __init__(self):
        self.params = jax.random.normal(jax.random.key(0), (5, 3))
        self.momentum = jnp.zeros((5, 3))
        self.key = jax.random.key(1)

    def loss(self, params, batch):
        x, y = batch
        return jnp.mean((jnp.tanh(x @ params) - y) ** 2)

    def train_step(self, batch):
        key, now = jax.random.split(self.key)
        loss, grads = jax.value_and_grad(self.loss)(self.params, batch)
        momentum = 0.9 * self.momentum + grads + 0.01 * jax.random.normal(now, grads.shape)
        new = solstice.replace(
            self, params=self.params - 0.1 * momentum, momentum=momentum, key=key
        )
        return new, {"loss": loss}

    def eval_step(self, batch):
        return self, {"loss": self.loss(self.params, batch)}


def data(seed):
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=(75, 5)), draw.normal(size=(75, 3))
    return solstice.data.batches((x.astype(np.float32), y.astype(np.float32)), 4, shuffle=True)


class Terminal:
    def isatty(self):
        return True

    def write(self, text):
        return len(text)

    def flush(self):
        pass


def usual(folder):
    return {
        "validation": None,
        "logging": Logging(lambda metrics, step: None, every=3),
        "progress": ProgressBar(file=Terminal(), seconds=0),
        "checkpoint": Checkpoint(folder / "runs", every=7),
        "profiler": Profiler(folder / "profile", start=5, steps=5),
        "history": History(every=5),
        "trace": Trace(folder / "runs", every=3),
    }


def digest(experiment):
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(experiment):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        found.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return found.hexdigest()


def covering(names):
    """16 subsets, among them all and none: of any three names, each of the 8 subsets is in some.

    They are the affine functions of three bits, at seven of the eight points.
    """
    points = list(itertools.product([0, 1], repeat=3))[: len(names)]
    return [
        tuple(
            name
            for name, point in zip(names, points, strict=True)
            if (constant + np.dot(slope, point)) % 2
        )
        for constant, *slope in itertools.product([0, 1], repeat=4)
    ]


def test_the_subsets_cover_any_three_callbacks(tmp_path):
    names = list(usual(tmp_path))
    subsets = covering(names)
    assert () in subsets
    assert tuple(names) in subsets
    for three in itertools.combinations(names, 3):
        assert len({tuple(name in subset for name in three) for subset in subsets}) == 8


@pytest.mark.slow
def test_the_usual_callbacks_in_any_company_train_to_the_same_bits(tmp_path):
    digests = {}
    for index, subset in enumerate(covering(list(usual(tmp_path)))):
        there = usual(tmp_path / str(index))
        callbacks = [there[name] for name in subset if there[name] is not None]
        val = data(1) if "validation" in subset else None
        exp = solstice.Trainer(callbacks).fit(Noisy(), data(0), val, num_epochs=2)
        digests[subset] = digest(exp)
    assert {*digests.values()} == {digests[()]}
