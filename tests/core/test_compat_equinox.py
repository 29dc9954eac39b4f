"""EquinoxModel: an Equinox module, with or without State, or what makes one, as a Model."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import solstice
from solstice.compat import EquinoxModel

KEY, X = toys.KEY, toys.X


class MLP(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key, hidden=16):
        one, two = jax.random.split(key)
        self.first = eqx.nn.Linear(toys.FEATURES, hidden, key=one)
        self.last = eqx.nn.Linear(hidden, toys.CLASSES, key=two)

    def __call__(self, x):
        return self.last(jax.nn.relu(self.first(x)))


class Normed(MLP):
    norm: eqx.nn.BatchNorm

    def __init__(self, key, axis_name="batch"):
        super().__init__(key)
        self.norm = eqx.nn.BatchNorm(16, axis_name, momentum=0.8, mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        return self.last(jax.nn.relu(x)), state


class Dropping(MLP):
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        super().__init__(key, hidden=64)
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x, key=None):
        return self.last(self.dropout(jax.nn.relu(self.first(x)), key=key))


class Both(Normed):
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        super().__init__(key)
        self.dropout = eqx.nn.Dropout(0.2)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.first(x), state)
        return self.last(self.dropout(jax.nn.relu(x), key=key)), state


class Shifted(eqx.Module):
    """Holds an integer array, a Boolean one and a NumPy one beside its parameters."""

    weight: jax.Array
    order: jax.Array
    mask: jax.Array
    activation: Any

    def __init__(self, key):
        self.weight = jax.random.normal(key, (toys.FEATURES, toys.CLASSES))
        self.order = jnp.arange(toys.FEATURES)[::-1]
        self.mask = jnp.arange(toys.FEATURES) > 0
        self.activation = jnp.tanh

    def __call__(self, x):
        return self.activation(jnp.where(self.mask, x[self.order], 0.0) @ self.weight)


class Summing(eqx.Module):
    scale: jax.Array

    def __call__(self, x):
        return {"sum": self.scale * (x["a"] + x["more"][0])}


MAKERS = {
    "mlp": MLP,
    "normed": eqx.nn.make_with_state(Normed),
    "dropping": Dropping,
    "both": eqx.nn.make_with_state(Both),
    "buffers": Shifted,
    "eqx.nn.MLP": lambda key: eqx.nn.MLP(toys.FEATURES, toys.CLASSES, 8, 2, key=key),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_factory_is_a_model(make):
    toys.check_model(EquinoxModel(make))


@pytest.mark.parametrize("name", ["mlp", "both"])
def test_instance_is_a_model(name):
    toys.check_model(EquinoxModel(MAKERS[name](key=KEY)))


def test_batch_norm_of_a_pair():
    toys.check_batch_norm(EquinoxModel(MAKERS["normed"](key=KEY)))


def test_batch_norm_of_a_factory_with_an_axis_of_another_name():
    def make(key):
        return MAKERS["normed"](key, axis_name="examples")

    toys.check_batch_norm(EquinoxModel(make, axis_name="examples"))


def test_dropout():
    toys.check_dropout(EquinoxModel(Dropping))


def test_dropout_without_a_key_is_an_error_in_training():
    model = EquinoxModel(Dropping)
    with pytest.raises(RuntimeError, match="Dropout requires a key"):
        model.forward(*model.init(KEY, X), X, train=True)


class Drawing(MLP):
    """Draws in both modes, and fails without a key."""

    def __call__(self, x, key):
        return super().__call__(x + jax.random.normal(key, x.shape))


class DrawingOrNone(MLP):
    def __call__(self, x, *, key=None):
        return super().__call__(x + jax.random.normal(key, x.shape))


def a_layer_that_draws(key):
    return eqx.nn.Sequential([eqx.nn.Linear(toys.FEATURES, toys.CLASSES, key=key), Noise()])


class Noise(eqx.Module):
    def __call__(self, x, *, key=None):
        return x + jax.random.normal(key, x.shape)


@pytest.mark.slow
@pytest.mark.parametrize("make", [Drawing, DrawingOrNone, a_layer_that_draws])
def test_a_network_that_draws_in_evaluation_does_so_repeatably(make):
    toys.check_draws_in_evaluation(EquinoxModel(make))


def test_a_key_that_is_asked_for_and_not_used_changes_nothing():
    class Asking(Dropping):
        def __call__(self, x, key):
            return super().__call__(x, key)

    asking, plain = EquinoxModel(Asking), EquinoxModel(Dropping)
    expected, _ = plain.forward(*plain.init(KEY, X), X, train=False)
    outputs, _ = asking.forward(*asking.init(KEY, X), X, train=False)
    np.testing.assert_array_equal(outputs, expected)


def test_evaluation_draws_nothing_where_the_network_does_without():
    class Guarded(MLP):
        def __call__(self, x, key=None):
            return x if key is None else x + jax.random.normal(key, x.shape)

    model = EquinoxModel(Guarded)
    values = model.init(KEY, X)
    np.testing.assert_array_equal(model.forward(*values, X, train=False)[0], X)
    assert (model.forward(*values, X, train=True, key=KEY)[0] != X).all()


def test_an_error_in_evaluation_is_that_of_the_network():
    class Failing(MLP):
        def __call__(self, x, key=None):
            if key is not None:
                raise ValueError("with a key")
            return super().__call__(x[:3])

    model = EquinoxModel(Failing)
    with pytest.raises(TypeError, match="dot_general"):
        model.forward(*model.init(KEY, X), X, train=False)


def test_instance_in_inference_mode_trains_all_the_same():
    toys.check_dropout(EquinoxModel(eqx.nn.inference_mode(Dropping(KEY))))


def test_values_are_those_of_the_module():
    module = MLP(KEY)
    model = EquinoxModel(module)
    params, state = model.init(jax.random.key(9), X)
    toys.assert_trees_equal(jax.tree.leaves(params), jax.tree.leaves(module))
    outputs, _ = model.forward(params, state, X, train=True, key=KEY)
    np.testing.assert_allclose(outputs, jax.vmap(module)(X), rtol=1e-6)


def test_factory_makes_other_values_for_another_key_and_an_instance_ignores_it():
    other = jax.random.key(1)
    factory, instance = EquinoxModel(MLP), EquinoxModel(MLP(KEY))
    assert toys.trees_differ(factory.init(KEY, X), factory.init(other, X))
    toys.assert_trees_equal(instance.init(KEY, X), instance.init(other, X))
    expected, _ = factory.init(other, X)
    toys.assert_trees_equal(jax.tree.leaves(expected), jax.tree.leaves(MLP(other)))


def test_integer_and_boolean_arrays_are_state():
    model = EquinoxModel(Shifted)
    params, state = model.init(KEY, X)
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [(toys.FEATURES, toys.CLASSES)]
    assert {leaf.dtype.kind for leaf in jax.tree.leaves(state)} == {"i", "b"}
    outputs, after = model.forward(params, state, X, train=True, key=KEY)
    toys.assert_trees_equal(after, state)
    np.testing.assert_allclose(outputs, jax.vmap(Shifted(KEY))(X), rtol=1e-6)


def test_params_that_are_passed_are_used_and_differentiated():
    model = EquinoxModel(MLP(KEY))
    params, state = model.init(KEY, X)
    zeros = jax.tree.map(jnp.zeros_like, params)
    outputs, _ = model.forward(zeros, state, X, train=False)
    np.testing.assert_array_equal(outputs, np.zeros((8, toys.CLASSES)))
    grads = jax.grad(lambda p: model.forward(p, state, X, train=True)[0].sum())(params)
    np.testing.assert_allclose(grads.last.bias, np.full(toys.CLASSES, 8.0), rtol=1e-6)


def test_trees_go_in_and_come_out():
    model = EquinoxModel(Summing(jnp.ones(())))
    x = {"a": X, "more": [2 * X]}
    outputs, _ = model.forward(*model.init(KEY, x), x, train=True, key=KEY)
    np.testing.assert_allclose(outputs["sum"], 3 * X, rtol=1e-6)


class TwoInputs(eqx.Module):
    one: jax.Array

    def __call__(self, a, b, *, key=None):
        del key
        return a + 2 * self.one * b


def test_several_inputs():
    toys.check_unpack(TwoInputs(jnp.ones(())))


@pytest.mark.parametrize(
    "wrong", [None, 3, lambda key: 3, jnp.tanh(1.0), (1, 2), eqx.nn.State(MLP(KEY))]
)
def test_what_is_no_module_is_an_error(wrong):
    with pytest.raises(TypeError, match=r"EquinoxModel takes a callable equinox.Module"):
        EquinoxModel(wrong)


def test_module_that_cannot_be_called_is_an_error():
    class Silent(eqx.Module):
        w: jax.Array

    with pytest.raises(TypeError, match=r"callable equinox.Module"):
        EquinoxModel(Silent(jnp.ones(3)))


@pytest.mark.parametrize("name", ["mlp", "both"])
def test_learns_and_compiles_once(name):
    toys.check_learns(MAKERS[name](key=KEY))


def test_found_by_name_and_by_type():
    assert "EquinoxModel" in dir(solstice.compat)
    assert type(solstice.compat.as_model(MLP(KEY))) is EquinoxModel
    assert type(solstice.compat.as_model(MAKERS["normed"](key=KEY))) is EquinoxModel


def test_a_module_whose_layers_have_a_state_is_told_to_come_with_it():
    with pytest.raises(TypeError, match=r"write `EquinoxModel\(eqx.nn.make_with_state"):
        EquinoxModel(Normed)
