"""HaikuModel: a transformed Haiku function as a Model."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import solstice
import solstice.testing
from solstice_haiku import HaikuModel

KEY, X = toys.KEY, toys.X


def mlp(x):
    return hk.nets.MLP([16, toys.CLASSES])(x)


def normed(x, is_training):
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.8)(
        hk.Linear(16)(x), is_training
    )
    return hk.Linear(toys.CLASSES)(jax.nn.relu(x))


def dropping(x, is_training):
    x = jax.nn.relu(hk.Linear(64)(x))
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(toys.CLASSES)(x)


def both(x, is_training):
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.8)(hk.Linear(16)(x), is_training))
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.2, x)
    return hk.Linear(toys.CLASSES)(x)


def summing(x):
    return {"sum": hk.Linear(4)(x["a"]) + hk.Linear(4)(x["more"][0])}


def flagged(name):
    """A function that adds 1 where its flag of this name says so."""
    return eval(f"lambda x, {name}: x + int({name})")


@pytest.fixture(autouse=True)
def _haiku_mixes_dtypes():
    """`hk.dropout` multiplies floats with booleans, which strict dtype promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


TRANSFORMED = {
    "stateless": hk.transform(mlp),
    "stateful": hk.transform_with_state(mlp),
    "stateless without rng": hk.without_apply_rng(hk.transform(mlp)),
    "stateful without rng": hk.without_apply_rng(hk.transform_with_state(mlp)),
}


@pytest.mark.parametrize("transformed", TRANSFORMED.values(), ids=TRANSFORMED)
def test_every_transform_is_a_model_with_the_same_values(transformed):
    model = HaikuModel(transformed)
    toys.check_model(model)
    params, state = model.init(KEY, X)
    assert jax.tree.leaves(state) == []
    expected = hk.transform(mlp).init(KEY, X)
    toys.assert_trees_equal(params, expected)
    outputs, _ = model.forward(params, state, X, train=True, key=KEY)
    np.testing.assert_array_equal(outputs, hk.transform(mlp).apply(expected, None, X))


def test_another_key_gives_other_values():
    model = HaikuModel(hk.transform(mlp))
    assert toys.trees_differ(model.init(KEY, X), model.init(jax.random.key(1), X))


def test_batch_norm():
    toys.check_batch_norm(HaikuModel(hk.transform_with_state(normed)))


def test_batch_norm_without_rng():
    toys.check_batch_norm(HaikuModel(hk.without_apply_rng(hk.transform_with_state(normed))))


def test_batch_norm_statistics_are_state_and_not_params():
    params, state = HaikuModel(hk.transform_with_state(normed)).init(KEY, X)
    assert not any("ema" in module for module in params)
    assert all("ema" in module for module in state)
    assert params["batch_norm"].keys() == {"scale", "offset"}


@pytest.mark.parametrize("transform", [hk.transform, hk.transform_with_state])
def test_dropout(transform):
    toys.check_dropout(HaikuModel(transform(dropping)))


@pytest.mark.parametrize("name", ["is_training", "train", "training"])
@pytest.mark.parametrize("transform", [hk.transform, hk.transform_with_state])
@pytest.mark.parametrize("rng", [True, False])
def test_flag_of_each_name_is_found(name, transform, rng):
    transformed = transform(flagged(name))
    assert responses(HaikuModel(transformed if rng else hk.without_apply_rng(transformed))) == (
        1,
        0,
    )


def test_train_arg_names_a_flag_of_another_name():
    transformed = hk.transform(flagged("noisy"))
    assert responses(HaikuModel(transformed, train_arg="noisy")) == (1, 0)
    assert responses(solstice.compat.as_model(transformed, train_arg="noisy")) == (1, 0)


def test_train_arg_names_a_flag_that_the_function_hides():
    def hiding(*args, **kwargs):
        return flagged("is_training")(*args, **kwargs)

    model = HaikuModel(hk.transform(hiding), train_arg="is_training")
    assert responses(model) == (1, 0)


def test_empty_train_arg_leaves_the_flag_alone():
    def net(x, train=False):
        return x + int(train)

    assert responses(HaikuModel(hk.transform(net))) == (1, 0)
    assert responses(HaikuModel(hk.transform(net), train_arg="")) == (0, 0)


def test_flag_of_a_partial_function_that_is_bound_is_passed_all_the_same():
    net = functools.partial(lambda x, shift, is_training: x + shift + int(is_training), shift=2.0)
    assert responses(HaikuModel(hk.transform(net))) == (3, 2)


def responses(model):
    """What a net adds in training, and in evaluation."""
    zeros = jnp.zeros((1, 1))
    params, state = model.init(KEY, zeros)
    trained, _ = model.forward(params, state, zeros, train=True, key=KEY)
    evaluated, _ = model.forward(params, state, zeros, train=False)
    return int(trained[0, 0]), int(evaluated[0, 0])


def drawing(x):
    hidden = jax.nn.relu(hk.Linear(16)(x))
    return hk.Linear(toys.CLASSES)(hidden + jax.random.normal(hk.next_rng_key(), hidden.shape))


@pytest.mark.parametrize("transform", [hk.transform, hk.transform_with_state])
def test_a_network_that_draws_in_evaluation_does_so_repeatably(transform):
    toys.check_draws_in_evaluation(transform(drawing))


def test_evaluation_draws_nothing_where_the_network_does_without():
    def net(x):
        key = hk.maybe_next_rng_key()
        return x if key is None else x + jax.random.normal(key, x.shape)

    model = HaikuModel(hk.transform(net))
    np.testing.assert_array_equal(model.forward({}, {}, X, train=False)[0], X)
    assert (model.forward({}, {}, X, train=True, key=KEY)[0] != X).all()


def test_an_error_in_evaluation_is_that_of_the_network():
    def net(x, is_training):
        if not is_training:
            raise KeyError("mine")
        return x

    with pytest.raises(KeyError, match="mine"):
        HaikuModel(hk.transform(net)).forward({}, {}, X, train=False)


def test_trees_go_in_and_come_out():
    model = HaikuModel(hk.transform(summing))
    x = {"a": X, "more": [X[:, :2]]}
    toys.check_init(model, x)
    outputs, _ = model.forward(*model.init(KEY, x), x, train=True, key=KEY)
    assert outputs["sum"].shape == (8, 4)


def test_several_inputs():
    def net(a, b, is_training):
        del is_training
        return a + 2 * hk.get_parameter("one", (), init=jnp.ones) * b

    toys.check_unpack(hk.transform(net))
    toys.check_unpack(hk.without_apply_rng(hk.transform_with_state(net)))


@pytest.mark.parametrize("wrong", [mlp, None, (mlp, mlp), hk.Linear])
def test_what_is_not_transformed_is_an_error(wrong):
    with pytest.raises(TypeError, match=r"HaikuModel takes the result of hk.transform"):
        HaikuModel(wrong)


def test_learns_and_compiles_once():
    toys.check_learns(hk.transform_with_state(both))


def test_without_rng_learns_and_compiles_once():
    toys.check_learns(hk.without_apply_rng(hk.transform(mlp)))


def test_found_by_name_and_by_type():
    assert solstice.compat.HaikuModel is HaikuModel
    for transformed in TRANSFORMED.values():
        assert type(solstice.compat.as_model(transformed)) is HaikuModel


def test_pixels_have_the_line_to_write():
    pixels = np.zeros((4, 6, 6, 1), np.uint8)
    net = hk.transform(lambda x: hk.Linear(2)(hk.Flatten()(hk.Conv2D(2, 3)(x))))
    exp = solstice.ClassificationExperiment(net, solstice.testing.Sgd(0.1), 2)
    with pytest.raises(solstice.DataError, match=r"write `\(x / 255\).astype\('float32'\)`"):
        exp.train((pixels, np.arange(4) % 2), batch_size=2, callbacks=[])
