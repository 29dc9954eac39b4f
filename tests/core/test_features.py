"""Features that a ready-made Experiment is given: several inputs, and whole numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import DataError
from solstice.compat import as_model
from solstice.testing import Sgd

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(23, 4)).astype(np.float32), RNG.normal(size=(23, 3)).astype(np.float32)
Y = (A[:, 0] > 0).astype(np.int32)
PIXELS = RNG.integers(0, 255, (8, 6, 6, 1), dtype=np.uint8)


class Two(eqx.Module):
    """Of two inputs, or of one that is a tuple of two."""

    layer: eqx.nn.Linear

    def __call__(self, a, b=None):
        a, b = a if b is None else (a, b)
        return self.layer(jnp.concatenate([a, b], -1))


def two(*, unpack, size=7):
    net = Two(eqx.nn.Linear(size, 2, key=jax.random.key(0)))
    return as_model(net, unpack=True) if unpack else as_model(net)


class Images(eqx.Module):
    conv: eqx.nn.Conv2d
    out: eqx.nn.Linear

    def __init__(self, channels=1):
        self.conv = eqx.nn.Conv2d(channels, 2, 3, padding=1, key=jax.random.key(0))
        self.out = eqx.nn.Linear(2 * 6 * 6, 2, key=jax.random.key(1))

    def __call__(self, x):
        return self.out(self.conv(jnp.moveaxis(x, -1, 0)).reshape(-1))


@pytest.mark.parametrize("unpack", [True, False])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_all_inputs_of_a_network_are_predicted_from(unpack, kind):
    net = two(unpack=unpack)
    if kind == "regression":
        exp = solstice.RegressionExperiment(net, Sgd(0.1), sample_input=(A, B))
        right = exp((A, B))
    else:
        exp = solstice.ClassificationExperiment(net, Sgd(0.1), 2, sample_input=(A, B))
        right = jax.nn.softmax(exp((A, B)))
    given = {
        "pair": (A, B),
        "tuple of a pair": ((A, B),),
        "with targets": ((A, B), Y),
        "masked": solstice.data.Masked((A, B), Y > 0),
    }
    for name, ds in given.items():
        found = exp.predict(ds, batch_size=5)
        np.testing.assert_allclose(found, right, atol=1e-6, err_msg=name)
    batches = [(A[i : i + 5], B[i : i + 5]) for i in range(0, 23, 5)]
    np.testing.assert_allclose(exp.predict(batches), right, atol=1e-6)


def test_a_pair_for_a_network_of_one_input_is_features_and_labels():
    net = eqx.nn.Linear(4, 2, key=jax.random.key(0))
    exp = solstice.ClassificationExperiment(net, Sgd(0.1), 2, sample_input=A)
    for ds in (A, (A,), (A, Y), (A, B)):
        np.testing.assert_allclose(exp.predict(ds, batch_size=5), jax.nn.softmax(exp(A)), atol=1e-6)


def test_inputs_that_do_not_fit_are_named_with_the_line_to_write():
    exp = solstice.ClassificationExperiment(two(unpack=True), Sgd(0.1), 2, sample_input=(A, B))
    with pytest.raises(DataError, match=r"are \[0\]\[4\], \[1\]\[3\]; these are \[0\]\[4\], "):
        exp.predict((A, A), batch_size=5)
    for ds in (A, (A, B, Y)):
        with pytest.raises(DataError, match=r"are one tuple: `\(a, b\)`, `\(\(a, b\), y\)`"):
            exp.predict(ds, batch_size=5)


def classifier(**options):
    return solstice.ClassificationExperiment(Images(), Sgd(0.1), 2, **options)


FLOATS = (PIXELS / 255).astype("float32")


@pytest.mark.parametrize(
    "use",
    [
        lambda: classifier(sample_input=PIXELS)(PIXELS),
        lambda: classifier().train((PIXELS, Y[:8]), batch_size=4, callbacks=[]),
        lambda: classifier(sample_input=FLOATS).predict(PIXELS, batch_size=4),
    ],
)
def test_pixels_for_a_network_of_floating_point_have_the_line_to_write(use):
    with pytest.raises(DataError, match=r"u8\[.*write `\(x / 255\).astype\('float32'\)`") as caught:
        use()
    assert isinstance(caught.value.__cause__, TypeError)
    classifier().train((FLOATS, Y[:8]), batch_size=4, callbacks=[])


def test_other_whole_numbers_are_not_divided():
    exp = solstice.ClassificationExperiment(Images(), Sgd(0.1), 2)
    with pytest.raises(DataError, match=r"i32\[.*write `x\.astype\('float32'\)`"):
        exp.train((PIXELS.astype(np.int32), Y[:8]), batch_size=4, callbacks=[])


def test_what_a_network_of_tokens_raises_itself_comes_out():
    class Broken(eqx.Module):
        def __call__(self, x):
            raise KeyError("mine")

    exp = solstice.ClassificationExperiment(Broken(), Sgd(0.1), 2)
    with pytest.raises(KeyError, match="mine"):
        exp.train((PIXELS, Y[:8]), batch_size=4, callbacks=[])
