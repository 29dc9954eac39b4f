"""NNX objects as fields of an Experiment: changed in place, bit for bit as by hand, resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import nnx

import solstice
from solstice.callbacks import Checkpoint

BATCHES = toys.blobs(4)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(toys.FEATURES, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.2)
        self.last = nnx.Linear(16, toys.CLASSES, rngs=rngs)

    def __call__(self, x, rngs=None):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x))), rngs=rngs))


def loss_fn(model, rngs, batch):
    x, labels = batch
    chosen = jnp.take_along_axis(jax.nn.log_softmax(model(x, rngs)), labels[:, None], 1)
    return -chosen.mean()


class Classify(solstice.Experiment):
    model: Net
    rngs: nnx.Rngs

    def train_step(self, batch):
        descend(self.model, self.rngs, batch)
        return self, {}

    def eval_step(self, batch):
        model = nnx.clone(self.model)
        model.eval()
        return self, {"loss": loss_fn(model, None, batch)}


def descend(model, rngs, batch):
    grads = nnx.grad(loss_fn)(model, rngs, batch)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))


def make(cls=Classify):
    return cls(Net(nnx.Rngs(0)), nnx.Rngs(1))


def values(experiment):
    def on_host(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return [on_host(leaf) for leaf in jax.tree.leaves(experiment)]


def test_steps_in_place_equal_a_loop_by_hand_and_leave_the_given_experiment_alone():
    given = make()
    before = values(given)
    trained = solstice.Trainer().fit(given, BATCHES, num_epochs=2)
    toys.assert_trees_equal(values(given), before)
    by_hand, step = make(), nnx.jit(descend)
    for batch in BATCHES * 2:
        step(by_hand.model, by_hand.rngs, batch)
    toys.assert_trees_equal(values(trained), values(by_hand))


def test_evaluation_is_repeatable_and_changes_nothing():
    trainer = solstice.Trainer()
    trained = trainer.fit(make(), BATCHES, BATCHES, num_epochs=1)
    before = values(trained)
    assert trainer.test(trained, BATCHES) == trainer.test(trained, BATCHES)
    toys.assert_trees_equal(values(trained), before)


def test_a_run_that_is_resumed_ends_with_the_same_bits(tmp_path):
    pytest.importorskip("safetensors")
    whole = solstice.Trainer().fit(make(), BATCHES, num_epochs=3)
    solstice.Trainer([Checkpoint(tmp_path)]).fit(make(), BATCHES, max_steps=6)
    resumed = solstice.Trainer([Checkpoint(tmp_path)]).fit(
        make(), BATCHES, num_epochs=3, resume="last"
    )
    toys.assert_trees_equal(values(resumed), values(whole))


@pytest.mark.parametrize("method", ["train_step", "eval_step"])
def test_a_mode_that_a_step_changes_is_named_with_both_values(method):
    class Moded(Classify):
        pass

    def change(self, batch):
        del batch
        self.model.eval()
        return self, {}

    setattr(Moded, method, change)
    named = r"at `\.model\.dropout\.deterministic`: it was False and came back as True.*a copy"
    with pytest.raises(solstice.ExperimentError, match=f"{method} changed .* {named}"):
        solstice.Trainer().fit(make(Moded), BATCHES, BATCHES, num_epochs=1)
