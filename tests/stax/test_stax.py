"""StaxModel: a Stax pair, or a function from the mode to one, as a Model."""

import jax
import numpy as np
import pytest
import toys
from jax.example_libraries import stax

import solstice
import solstice.testing
from solstice_stax import StaxModel

KEY, X = toys.KEY, toys.X


@pytest.fixture(autouse=True)
def _stax_promotes_ranks():
    """Stax's Dense adds a bias of rank 1 to a matrix, and its Dropout mixes dtypes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def mlp():
    return stax.serial(stax.Dense(16), stax.Relu, stax.Dense(toys.CLASSES))


def dropping(mode):
    dropout = stax.Dropout(0.5, mode)
    return stax.serial(stax.Dense(64), stax.Relu, dropout, stax.Dense(toys.CLASSES))


def test_pair_is_a_model():
    toys.check_model(StaxModel(mlp()))


def test_values_are_those_of_stax():
    init_fn, apply_fn = mlp()
    model = StaxModel((init_fn, apply_fn))
    params, state = model.init(KEY, X)
    shape, expected = init_fn(KEY, X.shape)
    toys.assert_trees_equal(params, expected)
    assert jax.tree.leaves(state) == []
    outputs, _ = model.forward(params, state, X, train=True, key=KEY)
    assert outputs.shape == shape
    np.testing.assert_array_equal(outputs, apply_fn(expected, X))


def test_another_key_gives_other_values():
    model = StaxModel(mlp())
    assert toys.trees_differ(model.init(KEY, X), model.init(jax.random.key(1), X))


def test_size_of_the_batch_changes_no_value():
    model = StaxModel(mlp())
    toys.assert_trees_equal(model.init(KEY, X), model.init(KEY, X[:1]))


def test_dropout_of_a_factory():
    toys.check_dropout(StaxModel(dropping))


def test_factory_is_built_in_the_mode_of_each_call():
    modes = []

    def net(mode):
        modes.append(mode)
        return dropping(mode)

    model = StaxModel(net)
    params, state = model.init(KEY, X)
    modes.clear()
    model.forward(params, state, X, train=True, key=KEY)
    assert set(modes) == {"train"}
    modes.clear()
    model.forward(params, state, X, train=False)
    assert set(modes) == {"test"}


def deaf(mode):
    del mode
    return dropping("train")


def nested(mode):
    del mode
    return stax.serial(stax.FanOut(2), stax.parallel(dropping("train"), mlp()), stax.FanInSum)


@pytest.mark.parametrize("net", [dropping("train"), nested("train"), deaf, nested])
@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
def test_dropout_that_was_built_for_training_is_refused_at_evaluation(net, key):
    model = StaxModel(net)
    params, state = model.init(KEY, X)
    model.forward(params, state, X, train=True, key=KEY)
    with pytest.raises(ValueError, match=r"Dropout with mode 'train'.*`def net\(mode\)"):
        model.forward(params, state, X, train=False, key=key)


def noise():
    """A layer that draws whenever it is called."""

    def apply_fn(params, x, rng=None, **options):
        del params, options
        return x + jax.random.normal(rng, x.shape)

    return (lambda rng, shape: (shape, ())), apply_fn


@pytest.mark.parametrize("net", [stax.serial(mlp(), noise()), lambda mode: stax.serial(noise())])
def test_a_network_that_draws_in_evaluation_does_so_repeatably(net):
    model = StaxModel(net)
    params, state = model.init(KEY, X)
    outputs, _ = model.forward(params, state, X, train=False)
    np.testing.assert_array_equal(outputs, model.forward(params, state, X, train=False)[0])
    expected, _ = model.forward(params, state, X, train=False, key=jax.random.key(0))
    np.testing.assert_array_equal(outputs, expected)
    assert (outputs != model.forward(params, state, X, train=True, key=jax.random.key(3))[0]).any()


def test_dropout_without_a_key_is_an_error_in_training():
    model = StaxModel(dropping)
    with pytest.raises(ValueError, match="rng"):
        model.forward(*model.init(KEY, X), X, train=True)


def test_batch_norm_normalises_by_the_batch_as_documented():
    model = StaxModel(stax.serial(stax.Dense(4), stax.BatchNorm(axis=(0,))))
    params, state = model.init(KEY, X)
    assert jax.tree.leaves(state) == []
    outputs, _ = model.forward(params, state, X, train=False)
    np.testing.assert_allclose(outputs.mean(axis=0), np.zeros(4), atol=1e-5)


def test_trees_go_in_and_come_out():
    both = stax.parallel(stax.Dense(4), stax.Dense(4))
    model = StaxModel(stax.serial(both, stax.FanInSum))
    x = [X, X[:, :2]]
    toys.check_model(model, x)


@pytest.mark.parametrize("wrong", [None, 3, (1, 2, 3), lambda mode: None, [1, 2]])
def test_what_is_no_pair_is_an_error(wrong):
    with pytest.raises(TypeError, match=r"StaxModel takes an \(init_fn, apply_fn\) pair"):
        StaxModel(wrong)


@pytest.mark.parametrize("wrong", [(1, 2), lambda mode: (1, 2)])
def test_pair_of_what_is_no_function_is_an_error(wrong):
    with pytest.raises(TypeError, match=r"StaxModel takes an \(init_fn, apply_fn\) pair"):
        StaxModel(wrong)


def test_pair_learns_and_compiles_once():
    toys.check_learns(mlp())


def test_factory_learns_and_compiles_once():
    toys.check_learns(StaxModel(dropping))


def test_found_by_name_and_by_type():
    assert solstice.compat.StaxModel is StaxModel
    assert type(solstice.compat.as_model(mlp())) is StaxModel
    assert type(solstice.compat.as_model(stax.Dense(3))) is StaxModel


def test_pixels_have_the_line_to_write():
    pixels = np.zeros((4, 6, 6, 1), np.uint8)
    net = stax.serial(stax.Conv(2, (3, 3)), stax.Flatten, stax.Dense(2))
    exp = solstice.ClassificationExperiment(net, solstice.testing.Sgd(0.1), 2)
    with pytest.raises(solstice.DataError, match=r"write `\(x / 255\).astype\('float32'\)`"):
        exp.train((pixels, np.arange(4) % 2), batch_size=2, callbacks=[])
