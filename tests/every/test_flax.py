"""Every layer of Linen and NNX that can be called here, by reflection, equals its use by hand."""

import inspect

import jax
import numpy as np
import pytest
import toys
from flax import linen, nnx

from solstice_flax import FlaxModel, NNXModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

KEYS = [jax.random.key(i) for i in range(3)]
X = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
# By the name of a parameter that has no default.
ARGUMENTS = {
    "features": 6,
    "num_features": 6,
    "in_features": 6,
    "out_features": 6,
    "hidden_features": 6,
    "qkv_features": 6,
    "num_heads": 2,
    "num_groups": 2,
    "lora_rank": 2,
    "rate": 0.5,
    "dropout_rate": 0.5,
    "kernel_size": (3,),
    "use_running_average": None,
    "deterministic": None,
}
# What keeps a state, or draws, must be among those that can be made.
LINEN = {"BatchNorm", "SpectralNorm", "WeightNorm", "Dropout", "SelfAttention", "RNN"}
NNX = {"BatchNorm", "SpectralNorm", "WeightNorm", "Dropout", "LoRALinear", "RNN"}


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def classes(module, base):
    found = {n: c for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, base)}
    return {name: cls for name, cls in sorted(found.items()) if cls is not base}


def arguments(cls, **more):
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (2, 4)]
    return {name: {**ARGUMENTS, **more}[name] for name in needed}


def linen_net(cls):
    """The layer in a module with a flag, as its users write it."""
    flags = inspect.signature(cls.__call__).parameters

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            flag = {"use_running_average": not train, "deterministic": not train}
            given = {n: v for n, v in {**flag, "update_stats": train}.items() if n in flags}
            parts = {"layer_instance": linen.Dense(6), "cell": linen.GRUCell(6)}
            return linen.Dense(3)(cls(**arguments(cls, **parts))(x, **given))

    return Net()


def nnx_net(cls):
    takes_rngs = "rngs" in inspect.signature(cls.__init__).parameters

    class Net(nnx.Module):
        def __init__(self, rngs):
            parts = {
                "layer_instance": nnx.Linear(6, 6, rngs=rngs),
                "cell": nnx.GRUCell(6, 6, rngs=rngs),
            }
            options = arguments(cls, rngs=rngs, **parts)
            self.layer = cls(**{**options, **({"rngs": rngs} if takes_rngs else {})})
            self.last = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return self.last(self.layer(x))

    return Net


def made(make, cls, always):
    """What `make` gives; a layer that cannot be made or called like this is skipped."""
    try:
        return make(cls)
    except Exception as error:
        if cls.__name__ in always:
            raise
        pytest.skip(f"{cls.__name__}: {error!r:.60}")


def of_linen(cls):
    net = linen_net(cls)
    return net, net.init(KEYS[0], X, True)


def of_nnx(cls):
    module = nnx_net(cls)(nnx.Rngs(KEYS[0]))
    nnx.clone(module)(X)
    return module


LINEN_LAYERS, NNX_LAYERS = classes(linen, linen.Module), classes(nnx, nnx.Module)


@pytest.mark.parametrize("name", LINEN_LAYERS)
def test_linen_layer_equals_its_use_by_hand(name):
    net, variables = made(of_linen, LINEN_LAYERS[name], LINEN)
    model = FlaxModel(net)
    params, state = model.init(KEYS[0], X)
    toys.assert_trees_equal({"params": params, **state}, dict(variables))
    for key in KEYS:
        outputs, state = model.forward(params, state, X, train=True, key=key)
        others = [name for name in variables if name != "params"]
        by_hand, new = net.apply(variables, X, True, rngs={"dropout": key}, mutable=others)
        variables = {"params": params, **new}
        toys.assert_trees_equal((outputs, state), (by_hand, dict(new)))
    outputs, _ = model.forward(params, state, X, train=False)
    toys.assert_trees_equal(outputs, net.apply(variables, X, False))


@pytest.mark.parametrize("name", NNX_LAYERS)
def test_nnx_layer_equals_its_use_by_hand(name):
    module = made(of_nnx, NNX_LAYERS[name], NNX)
    model = NNXModel(nnx_net(NNX_LAYERS[name]))
    params, state = model.init(KEYS[0], X)
    draws = bool(jax.tree.leaves(nnx.state(module, nnx.RngState)))
    start = nnx.state(nnx.clone(module), nnx.Param)
    module.train()
    for key in KEYS:
        outputs, state = model.forward(params, state, X, train=True, key=key)
        by_hand = module(X)
        nnx.update(module, start)  # WeightNorm writes what it has normalised into the params
        if not draws:  # the keys of its streams are the adapter's
            toys.assert_trees_equal(outputs, by_hand)
    module.eval()
    outputs, _ = model.forward(params, state, X, train=False)
    toys.assert_trees_equal(outputs, module(X))
