"""run_steps gives the bits of a fit, whatever framework the network is of."""

import hashlib
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.example_libraries import stax

import solstice

pytestmark = pytest.mark.bits

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(9, 8, 4)).astype(np.float32), RNG.integers(0, 3, (9, 8))


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax and Haiku mix dtypes, and the frameworks add a bias of one axis to rows."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(self.drop(self.norm(x)))


NETS = {
    "linen": lambda: nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(3)]),
    "nnx": lambda: Net(nnx.Rngs(0)),
    "haiku": lambda: hk.transform(lambda x: hk.nets.MLP([16, 3], activation=jnp.tanh)(x)),
    "stax": lambda: stax.serial(stax.Dense(16), stax.Tanh, stax.Dense(3)),
    "equinox": lambda: eqx.nn.MLP(4, 3, 16, 1, key=jax.random.key(0)),
}


def bits(tree: Any) -> str:
    arrays = [x for x in jax.tree.leaves(tree) if eqx.is_array(x)]
    keys = [jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in arrays]
    plain = [jax.random.key_data(x) if k else x for x, k in zip(arrays, keys, strict=True)]
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in plain)).hexdigest()


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_run_steps_is_a_fit(net: Any):
    start = solstice.ClassificationExperiment(net(), optax.adam(1e-2), num_classes=3)
    trainer = solstice.Trainer()
    fitted = trainer.fit(start, [*zip(X, Y, strict=True)])
    exp, metrics = solstice.run_steps(start, (X, Y))
    assert bits(exp) == bits(fitted)
    assert metrics is not None
    assert metrics.compute()["loss"] == trainer.history.rows[-1]["loss"]
    within, _ = eqx.filter_jit(solstice.run_steps)(start.setup((X[0], Y[0])), (X, Y))
    assert bits(within) == bits(fitted)
