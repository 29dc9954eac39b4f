"""Nets of Penzai."""

import jax
from penzai import pz


def net(hidden, classes, dropout):
    key = jax.random.key(0)
    layers = [
        pz.nn.Affine.from_config("one", key, {"features": 6}, {"hidden": hidden}),
        pz.nn.Elementwise(jax.nn.relu),
        pz.nn.StochasticDropout(dropout),
        pz.nn.Affine.from_config("two", key, {"hidden": hidden}, {"classes": classes}),
    ]
    return pz.nn.Sequential(layers if dropout else [*layers[:2], layers[3]])
