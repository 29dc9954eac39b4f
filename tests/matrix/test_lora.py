"""LoRA on a model of each framework trains its matrices alone, and merges into the same outputs."""

import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.example_libraries import stax

import solstice
from solstice.compat import lora

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 32).astype(np.int32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x)))


NETS = {
    "linen": (Linen(), "*/kernel"),
    "nnx": (nnx.Sequential(nnx.Linear(6, 8, rngs=nnx.Rngs(0)), nnx.relu,
                           nnx.Linear(8, 3, rngs=nnx.Rngs(1))), "*/kernel"),
    "haiku": (hk.transform(lambda x: hk.nets.MLP([8, 3])(x)), "*/w"),
    "stax": (stax.serial(stax.Dense(8), stax.Relu, stax.Dense(3)), "*/0"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def standard_promotion():
    """The frameworks and Optax mix dtypes, and add a bias of one axis to rows."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", NETS)
def test_lora_on_each_framework(name):
    net, on = NETS[name]
    plain = solstice.ClassificationExperiment(net, optax.adam(1e-2), 3, sample_input=X)
    model = lora(net, rank=2, on=on, params=plain.params, state=plain.state)
    start = solstice.ClassificationExperiment(model, optax.adam(1e-2), 3, sample_input=X)
    exp = start.train((X, Y), batch_size=8)
    assert sorted(path.rsplit("/", 1)[1] for path in exp.params) == [on[2:]] * 2
    assert sum(x.size for x in jax.tree.leaves(exp.params)) == 2 * (6 + 8) + 2 * (8 + 3)
    count = {leaf.size for leaf in jax.tree.leaves(exp.opt_state)}
    assert count <= {1} | {leaf.size for leaf in jax.tree.leaves(exp.params)}
    for before, after in zip(
        jax.tree.leaves(plain.params), jax.tree.leaves(exp.state["base"]), strict=True
    ):
        np.testing.assert_array_equal(before, after)
    merged = plain.with_params(model.merge(exp.params, exp.state))
    np.testing.assert_allclose(merged(X), exp(X), rtol=1e-6, atol=1e-6)
    assert np.abs(merged(X) - plain(X)).max() > 1e-3
