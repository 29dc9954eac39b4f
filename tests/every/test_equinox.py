"""Every layer of Equinox that can be called here, by reflection, equals its use by hand."""

import inspect

import equinox as eqx
import jax
import numpy as np
import pytest
import toys

from solstice.compat import EquinoxModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

KEYS = [jax.random.key(i) for i in range(3)]
# By the name of a parameter that has no default.
ARGUMENTS = {
    "in_features": 6,
    "out_features": 6,
    "in_size": 6,
    "out_size": 6,
    "width_size": 8,
    "depth": 1,
    "input_size": 6,
    "shape": (6,),
    "groups": 2,
    "channels": 6,
    "in_channels": 6,
    "out_channels": 6,
    "kernel_size": 3,
    "target_shape": 2,
    "axis_name": "batch",
    "fn": jax.nn.relu,
    "mode": "batch",
}
ALWAYS = {"BatchNorm", "SpectralNorm", "WeightNorm", "Dropout", "Linear", "LayerNorm"}
LAYERS = {
    name: cls
    for name, cls in sorted(vars(eqx.nn).items())
    if inspect.isclass(cls) and issubclass(cls, eqx.Module)
}


class Net(eqx.Module):
    """A layer and another, as their users write it."""

    layer: eqx.Module
    last: eqx.nn.Linear

    def __init__(self, cls, key):
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (2, 4)]
        parts = {"layer": eqx.nn.Linear(6, 6, key=key), "weight_name": "weight", "key": key}
        self.layer = cls(**{name: {**ARGUMENTS, **parts}[name] for name in needed})
        self.last = eqx.nn.Linear(6, 3, key=key)

    def __call__(self, x, state, *, key=None):
        takes = inspect.signature(self.layer.__call__).parameters
        options = {"key": key} if "key" in takes else {}
        if "state" in takes and takes["state"].default is inspect.Parameter.empty:
            x, state = self.layer(x, state, **options)
        else:
            x = self.layer(x, **options)
        return self.last(x.reshape(6, -1).mean(1)), state


def made(cls):
    module, state = eqx.nn.make_with_state(Net)(cls, KEYS[0])
    return module, state


def by_hand(module, state, x, key):
    keys = None if key is None else jax.random.split(key, len(x))

    def one(x, key):
        return module(x, state, key=key)

    return jax.vmap(one, axis_name="batch", out_axes=(0, None))(x, keys)


def arrays(tree):
    return eqx.filter(tree, eqx.is_array)


def fitting(cls):
    """A batch of as many dimensions as the layer takes; the test is skipped if there is none."""
    problem = None
    for dimensions in range(4):
        x = np.random.default_rng(0).normal(size=(4, 6) + (5,) * dimensions).astype(np.float32)
        try:
            by_hand(*made(cls), x, KEYS[0])
        except Exception as error:
            problem = error
        else:
            return x
    if cls.__name__ in ALWAYS:
        raise AssertionError(cls.__name__) from problem
    pytest.skip(f"{cls.__name__}: {problem!r:.60}")


@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_its_use_by_hand(name):
    cls = LAYERS[name]
    x = fitting(cls)
    (module, state), model = made(cls), EquinoxModel(made(cls))
    params, own = model.init(KEYS[0], x)
    toys.assert_trees_equal(arrays(params), eqx.filter(module, eqx.is_inexact_array))
    for key in KEYS:
        outputs, own = model.forward(params, own, x, train=True, key=key)
        expected, state = by_hand(module, state, x, key)
        toys.assert_trees_equal(outputs, expected)
        toys.assert_trees_equal(own[1], arrays(state))
    outputs, _ = model.forward(params, own, x, train=False)
    expected, _ = by_hand(eqx.nn.inference_mode(module), state, x, None)
    toys.assert_trees_equal(outputs, expected)
