"""Every layer that Stax exports, found by reflection, equals its use by hand."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax.example_libraries import stax

from solstice_stax import StaxModel

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
AXES = ("NHWC", "HWIO", "NHWC")
DENSE = stax.Dense(4)
# How to make a layer, and what for. All that Stax exports must be here.
MADE = {
    "Dense": (lambda mode: stax.Dense(4), IMAGES),
    "GeneralConv": (lambda mode: stax.GeneralConv(AXES, 4, (3, 3)), IMAGES),
    "Conv": (lambda mode: stax.Conv(4, (3, 3)), IMAGES),
    "GeneralConvTranspose": (lambda mode: stax.GeneralConvTranspose(AXES, 4, (3, 3)), IMAGES),
    "ConvTranspose": (lambda mode: stax.ConvTranspose(4, (3, 3)), IMAGES),
    "Conv1DTranspose": (lambda mode: stax.Conv1DTranspose(4, (3,)), IMAGES[0]),
    "BatchNorm": (lambda mode: stax.BatchNorm(), IMAGES),
    "MaxPool": (lambda mode: stax.MaxPool((2, 2)), IMAGES),
    "SumPool": (lambda mode: stax.SumPool((2, 2)), IMAGES),
    "AvgPool": (lambda mode: stax.AvgPool((2, 2)), IMAGES),
    "FanOut": (lambda mode: stax.FanOut(2), IMAGES),
    "FanInConcat": (lambda mode: stax.FanInConcat(), [IMAGES, IMAGES]),
    "Dropout": (lambda mode: stax.Dropout(0.5, mode), IMAGES),
    "elementwise": (lambda mode: stax.elementwise(jnp.sin), IMAGES),
    "serial": (lambda mode: stax.serial(DENSE, stax.Dropout(0.5, mode)), IMAGES),
    "parallel": (lambda mode: stax.parallel(DENSE, DENSE), [IMAGES, IMAGES]),
    "shape_dependent": (lambda mode: stax.shape_dependent(lambda s: stax.Dense(s[-1])), IMAGES),
}
PAIRS = {name: pair for name, pair in vars(stax).items() if isinstance(pair, tuple)}
OF_LISTS = {"FanInSum"}


def is_layer(name, value):
    function = value.func if isinstance(value, functools.partial) else value
    is_it = inspect.isfunction(function) and function.__module__ == stax.__name__
    return is_it and not name.startswith("_")


def test_all_that_makes_a_layer_is_made():
    found = {name for name, value in vars(stax).items() if is_layer(name, value)}
    assert len(PAIRS) > 8
    assert found - {"randn", "glorot", "glorot_normal"} == set(MADE)


@pytest.fixture(autouse=True)
def _stax_promotes_ranks():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", [*PAIRS, *MADE])
def test_layer_equals_its_use_by_hand(name):
    if name in PAIRS:
        net, x = PAIRS[name], [IMAGES, IMAGES] if name in OF_LISTS else IMAGES
    else:
        net, x = MADE[name]
    pairs = {mode: net(mode) if callable(net) else net for mode in ("train", "test")}
    model = StaxModel(net)
    params, state = model.init(toys.KEY, x)
    shapes = [leaf.shape for leaf in x] if isinstance(x, list) else x.shape
    _, by_hand = pairs["train"][0](toys.KEY, shapes)
    toys.assert_trees_equal(params, by_hand)
    for mode, key in (("train", jax.random.key(1)), ("test", None)):
        outputs, _ = model.forward(params, state, x, train=mode == "train", key=key)
        by_hand = pairs[mode][1](params, x, rng=jax.random.key(0) if key is None else key)
        toys.assert_trees_equal(outputs, by_hand)
