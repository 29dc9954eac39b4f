"""Every module of Haiku that can be called here, by reflection, equals its use by hand."""

import inspect

import haiku as hk
import jax
import numpy as np
import pytest
import toys

from solstice_haiku import HaikuModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

KEYS = [jax.random.key(i) for i in range(3)]
X = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
# By the name of a parameter that has no default.
ARGUMENTS = {
    "output_size": 6,
    "output_channels": 6,
    "output_sizes": [6, 6],
    "kernel_shape": 3,
    "window_shape": 3,
    "strides": 1,
    "padding": "SAME",
    "axis": -1,
    "create_scale": True,
    "create_offset": True,
    "decay_rate": 0.9,
    "decay": 0.9,
    "groups": 2,
    "embedding_dim": 6,
    "num_embeddings": 4,
    "commitment_cost": 0.25,
}
ALWAYS = {"BatchNorm", "ExponentialMovingAverage", "SpectralNorm", "Linear", "LayerNorm"}
MODULES = {
    name: cls
    for name, cls in sorted({**vars(hk), **vars(hk.nets)}.items())
    if inspect.isclass(cls) and issubclass(cls, hk.Module) and cls is not hk.Module
}


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def net(cls):
    """The module in a function with a flag, as its users write it."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (2, 4)]
    options = {name: ARGUMENTS[name] for name in needed}
    flags = inspect.signature(cls.__call__).parameters

    def apply(x, is_training):
        flag = {"is_training": is_training, "update_stats": is_training}
        x = cls(**options)(x, **{name: value for name, value in flag.items() if name in flags})
        return hk.Linear(3)(x["quantize"] if isinstance(x, dict) else x)

    return hk.transform_with_state(apply)


@pytest.mark.parametrize("name", MODULES)
def test_module_equals_its_use_by_hand(name):
    try:
        transformed = net(MODULES[name])
        params, state = transformed.init(KEYS[0], X, True)
    except Exception as error:
        if name in ALWAYS:
            raise
        pytest.skip(f"{name}: {error!r:.60}")
    model = HaikuModel(transformed)
    toys.assert_trees_equal(model.init(KEYS[0], X), (params, state))
    own = state
    for key in KEYS:
        outputs, state = model.forward(params, state, X, train=True, key=key)
        by_hand, own = transformed.apply(params, own, key, X, True)
        toys.assert_trees_equal((outputs, state), (by_hand, own))
    outputs, _ = model.forward(params, state, X, train=False)
    toys.assert_trees_equal(outputs, transformed.apply(params, own, KEYS[0], X, False)[0])
