"""A test set of more pixels than an int32 can count, on the device that JAX chooses."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.testing import Sgd

SHAPE = (16, 512, 512, 3)
BATCHES = 180


class Half(eqx.Module):
    """Gives pixels of 0.5, whatever the image."""

    zero: Any

    def __init__(self) -> None:
        self.zero = jnp.zeros(())

    def __call__(self, image: Any) -> Any:
        return jnp.full_like(image, 0.5) + self.zero


def zeros() -> Iterator[np.ndarray]:
    images = np.zeros(SHAPE, np.float32)
    for _ in range(BATCHES):
        yield images


@pytest.mark.slow
def test_an_autoencoder_is_tested_on_more_pixels_than_an_int32_counts():
    """Pixels of 0.5 where 0 is right: a squared error of 0.25 each."""
    assert BATCHES * np.prod(SHAPE) > 2**31
    half = solstice.compat.EquinoxModel(lambda key: Half())
    experiment = solstice.AutoencoderExperiment(half, half, Sgd(0.1))
    found = solstice.Trainer().test(experiment, zeros)
    assert found["loss"] == pytest.approx(0.25, rel=1e-6)
    assert found["mae"] == pytest.approx(0.5, rel=1e-6)
