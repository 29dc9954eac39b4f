"""summary: what an Experiment holds, and what of it trains; and the learning-rate finder."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.testing import Sgd


class Net(solstice.Experiment):
    params: Any
    frozen: Any
    opt_state: Any
    key: Any

    def __init__(self, half=False):
        dtype = jnp.bfloat16 if half else jnp.float32
        self.params = {"a": {"w": jnp.zeros((3, 4), dtype), "b": jnp.zeros(4)}, "c": jnp.ones(5)}
        self.frozen = jnp.zeros(7)
        self.opt_state = {"mu": jnp.zeros(21)}
        self.key = jax.random.key(0)

    def train_step(self, batch):
        params = {**self.params, "a": jax.tree.map(lambda leaf: leaf * 2, self.params["a"])}
        new = solstice.replace(
            self,
            params=params,
            opt_state={"mu": self.opt_state["mu"] + 1},
            key=jax.random.split(self.key)[0],
        )
        return new, {"loss": jnp.mean(batch)}

    def eval_step(self, batch):
        return self, {"loss": jnp.mean(batch)}


BATCH = np.ones(2, np.float32)


def test_numbers_bytes_dtypes_and_what_trains():
    found = solstice.summary(Net(half=True), BATCH)
    parts = {part.path: part for part in found.parts}
    assert parts["params/a"].size == 16
    assert parts["params/a"].nbytes == 12 * 2 + 4 * 4
    assert parts["params/a"].dtype == "bfloat16, float32"
    assert {path: part.trains for path, part in parts.items()} == {
        "params/a": "yes",
        "params": "no",
        "frozen": "no",
        "opt_state": "yes",
        "key": "yes",
    }
    assert (found.num_params, found.num_trainable) == (21, 16)
    assert found.opt_state_bytes == 84
    assert found.total_bytes == sum(part.nbytes for part in found.parts)
    assert "params: 21 numbers, 60 bytes, 16 of them train" in str(found)


def test_without_a_batch_it_is_not_asked_what_trains():
    found = solstice.summary(Net())
    assert found.num_trainable is None
    assert {part.trains for part in found.parts} == {""}
    assert "train" not in str(found).splitlines()[-3]


def test_frozen_weights_are_told_in_a_ready_made_experiment():
    net = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    optimizer = solstice.compat.freeze(Sgd(0.1), "layers/0/*")
    exp = solstice.ClassificationExperiment(net, optimizer, num_classes=3)
    batch = np.ones((2, 4), np.float32), np.zeros(2, np.int32)
    parts = {part.path: part.trains for part in solstice.summary(exp, batch).parts}
    assert parts["learner/params/layers/0"] == "no"
    assert parts["learner/params/layers/1"] == "yes"
    assert solstice.summary(exp, batch).num_trainable == 8 * 3 + 3


def test_shapes_alone_are_enough():
    found = solstice.summary(eqx.filter_eval_shape(Net), depth=1)
    assert [part.path for part in found.parts] == ["params", "frozen", "opt_state", "key"]
    assert found.num_params == 21


def test_how_arrays_lie_on_several_devices_is_told():
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("data",))
    spec = jax.sharding.PartitionSpec("data")
    split = jax.device_put(jnp.zeros(8), jax.sharding.NamedSharding(mesh, spec))
    found = solstice.summary(solstice.replace(Net(), frozen=split))
    on = next(part.sharding for part in found.parts if part.path == "frozen")
    assert on.startswith(f"{len(devices)} devices")
    assert "data" in on


def test_a_large_tree_is_shown_in_short():
    class Deep(Net):
        def __init__(self):
            super().__init__()
            self.params = {
                f"block{i}": {f"layer{j}": {"w": jnp.zeros(1)} for j in range(9)} for i in range(9)
            }

    found = solstice.summary(Deep())
    assert len(found.parts) <= 40
    assert "params/block3" in {part.path for part in found.parts}
    assert found.num_params == 81


class Quadratic(solstice.Experiment):
    """Gradient descent on x**2 converges up to a rate of 1, and is fastest at 0.5."""

    params: Any
    opt_state: Any

    def __init__(self, rate=1e-3):
        self.params = jnp.asarray(1.0, jnp.float32)
        self.opt_state = {"hyperparams": {"learning_rate": jnp.asarray(rate, jnp.float32)}}

    def train_step(self, batch):
        rate = self.opt_state["hyperparams"]["learning_rate"]
        loss = self.params**2
        return solstice.replace(self, params=self.params * (1 - 2 * rate)), {"loss": loss}

    def eval_step(self, batch):
        return self, {"loss": self.params**2}


def test_the_rate_found_is_one_at_which_it_learns(tmp_path):
    exp = Quadratic()
    found = solstice.find_learning_rate(
        exp, [BATCH] * 7, lowest=1e-4, highest=100.0, steps=120, smooth=0.5
    )
    assert 0.01 < found.suggestion < 1
    assert found.rates[0] == pytest.approx(1e-4)
    assert found.losses[0] == pytest.approx(1.0)
    assert len(found.rates) == len(found.losses) < 120  # it diverged, and stopped
    x, losses = 1.0, []
    for rate in found.rates[:30]:
        losses.append(x**2)
        x *= 1 - 2 * rate
    mean = 0.0
    for step, loss in enumerate(losses, 1):
        mean = 0.5 * mean + 0.5 * loss
        assert found.losses[step - 1] == pytest.approx(mean / (1 - 0.5**step), rel=1e-4)
    assert float(exp.params) == 1.0
    assert found.plot(tmp_path / "rates.png").axes[0].get_xscale() == "log"
    assert (tmp_path / "rates.png").exists()
    assert "suggestion=" in repr(found)


class Curve(Quadratic):
    """Its loss is a function of the rate, with the noise of its batches."""

    index: jax.Array
    curve: object

    def __init__(self, curve):
        super().__init__()
        self.index = jnp.zeros((), jnp.int32)
        self.curve = curve

    def train_step(self, batch):
        rate = self.opt_state["hyperparams"]["learning_rate"]
        loss = self.curve(jnp.log10(rate), self.index) + batch.mean()
        return solstice.replace(self, index=self.index + 1), {"loss": loss}


def rates_of(curve, noise=0.0, seed=0, **options):
    batches = [
        np.full(1, x, np.float32) for x in noise * np.random.default_rng(seed).normal(size=100)
    ]
    return solstice.find_learning_rate(Curve(curve), batches, **options)


def falls_at(rate, over=0.3):
    """From 3 to 1 around a rate."""
    return lambda log, index: 1 + 2 * jax.nn.sigmoid((np.log10(rate) - log) / over)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
def test_the_noise_of_a_flat_start_is_not_suggested(rate, seed):
    suggestion = rates_of(falls_at(rate), 0.3, seed).suggestion
    assert rate / 10 < suggestion < rate * 30


def test_the_last_rate_is_not_suggested():
    assert rates_of(lambda log, index: 10.0 - 10.0**log).suggestion < 1.0


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (lambda log, index: 0.7 + 0 * log, "does not fall by more than its noise"),
        (lambda log, index: 8.0 + log, "does not fall by more than its noise"),
        (lambda log, index: jnp.nan * log, "the loss is nan before the first update"),
        (
            lambda log, index: jnp.where(index < 4, 1.0, jnp.inf) + 0 * log,
            r"the loss is inf after 4 steps, at the rate 1.5e-06, and was 1.* lower `lowest`",
        ),
        (
            lambda log, index: jnp.where(index < 1, 1.0, 10.0) + 0 * log,
            r"the loss is 10 after 1 steps, .* lower `lowest`",
        ),
    ],
)
def test_a_loss_that_suggests_nothing_is_an_error_that_says_why(curve, message):
    with pytest.raises(ValueError, match=message):
        rates_of(curve)


def test_noise_alone_suggests_nothing():
    with pytest.raises(ValueError, match="does not fall by more than its noise"):
        rates_of(lambda log, index: 9.0 + 0 * log, 0.3)


def test_few_rates_do():
    found = rates_of(falls_at(1e-3), steps=10, smooth=0.0)
    assert 1e-4 < found.suggestion < 1e-1


def test_what_is_missing_for_it_is_told():
    with pytest.raises(ValueError, match="inject_hyperparams"):
        solstice.find_learning_rate(Net(), [BATCH])
    with pytest.raises(KeyError, match="there are: loss"):
        solstice.find_learning_rate(Quadratic(), [BATCH], metric="mse")
    with pytest.raises(ValueError, match="lowest"):
        solstice.find_learning_rate(Quadratic(), [BATCH], lowest=2.0)
