"""NNXModel: an NNX module, or a function that makes one, as a Model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import nnx

import solstice
from solstice_flax import NNXModel

KEY, X = toys.KEY, toys.X


class MLP(nnx.Module):
    def __init__(self, rngs, hidden=16):
        self.first = nnx.Linear(toys.FEATURES, hidden, rngs=rngs)
        self.last = nnx.Linear(hidden, toys.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))


class Normed(MLP):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.8, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


class Dropping(MLP):
    def __init__(self, rngs):
        super().__init__(rngs, hidden=64)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.first(x))))


class Both(Normed):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


class Sowing(MLP):
    def __call__(self, x):
        hidden = nnx.relu(self.first(x))
        self.sow(nnx.Intermediate, "hidden", hidden)
        return self.last(hidden)


class Counter(MLP):
    """Counts its calls in a variable of its own type."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        return super().__call__(x)


class Tied(nnx.Module):
    """One layer under two names."""

    def __init__(self, rngs):
        self.first = nnx.Linear(toys.FEATURES, toys.FEATURES, rngs=rngs)
        self.second = self.first

    def __call__(self, x):
        return self.second(self.first(x))


class Noise(nnx.Module):
    """Reads a stream of its own name."""

    def __init__(self, rngs):
        self.rngs = rngs
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return x + self.scale[...] * jax.random.normal(self.rngs.noise(), x.shape)


class Adding(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(toys.FEATURES, 4, rngs=rngs)

    def __call__(self, x):
        return {"sum": self.layer(x["a"]) + self.layer(x["more"][0])}


# Flax discourages `sow` outside of `nnx.capture`; what it does there must be harmless all the same.
pytestmark = pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")

MAKERS = [MLP, Normed, Dropping, Both, Sowing, Tied]


def everything(module):
    """All that an NNX module holds: its graph, with the flags of its mode, and its variables."""
    graph, state = nnx.split(module)
    return graph, [on_host(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(state))]


def on_host(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.array(jax.random.key_data(leaf) if is_key else leaf)


@pytest.mark.parametrize("make", MAKERS)
def test_factory_is_a_model(make):
    toys.check_model(NNXModel(make))


@pytest.mark.parametrize("make", [MLP, Both])
def test_instance_is_a_model(make):
    toys.check_model(NNXModel(make(nnx.Rngs(0))))


@pytest.mark.parametrize("seeds", [nnx.Rngs(0), nnx.Rngs(params=0, dropout=1)])
def test_dropout_of_an_instance_whatever_its_streams_are_called(seeds):
    toys.check_dropout(NNXModel(Dropping(seeds)))


def test_batch_norm():
    toys.check_batch_norm(NNXModel(Normed))
    toys.check_batch_norm(NNXModel(Normed(nnx.Rngs(0))))


def test_dropout():
    toys.check_dropout(NNXModel(Dropping))


def test_batch_norm_statistics_are_state_and_not_params():
    params, state = NNXModel(Normed).init(KEY, X)
    assert state.keys() == {"norm"}
    assert state["norm"].keys() == {"mean", "var"}
    assert params["norm"].keys() == {"scale", "bias"}


def test_factory_makes_other_values_for_another_key():
    model = NNXModel(MLP)
    assert toys.trees_differ(model.init(KEY, X), model.init(jax.random.key(1), X))


def test_factory_makes_what_the_module_makes_of_that_key():
    params, _ = NNXModel(MLP).init(KEY, X)
    module = MLP(nnx.Rngs(KEY))
    toys.assert_trees_equal(params, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    outputs, _ = NNXModel(MLP).forward(params, {}, X, train=True, key=KEY)
    np.testing.assert_allclose(outputs, module(X), rtol=1e-6)


def test_instance_ignores_the_key_and_keeps_its_values():
    module = MLP(nnx.Rngs(5))
    model = NNXModel(module)
    toys.assert_trees_equal(model.init(KEY, X), model.init(jax.random.key(1), X))
    toys.assert_trees_equal(model.init(KEY, X)[0], nnx.to_pure_dict(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize("train", [True, False])
def test_instance_is_not_changed(train):
    module = Both(nnx.Rngs(0))
    model = NNXModel(module)
    graph, values = everything(module)
    params, state = model.init(KEY, X)
    model.forward(params, state, X, train=train, key=KEY)
    jax.grad(lambda p: model.forward(p, state, X, train=train, key=KEY)[0].sum())(params)
    graph_after, values_after = everything(module)
    assert graph_after == graph
    toys.assert_trees_equal(values_after, values)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_mode_of_the_instance_does_not_matter(mode):
    module = Dropping(nnx.Rngs(0))
    getattr(module, mode)()
    toys.check_dropout(NNXModel(module))


def test_state_of_any_other_variable_advances_in_training_alone():
    model = NNXModel(Counter)
    params, state = model.init(KEY, X)
    for count in range(1, 4):
        _, state = model.forward(params, state, X, train=True, key=KEY)
        assert state == {"calls": count}
    assert model.forward(params, state, X, train=False)[1] is state


def test_what_is_sown_does_not_grow_the_state():
    assert jax.tree.leaves(NNXModel(Sowing).init(KEY, X)[1]) == []


def test_what_was_sown_before_does_not_change_the_state():
    module = Sowing(nnx.Rngs(0))
    module(X)
    toys.check_model(NNXModel(module))


def test_tied_layers_stay_tied():
    model = NNXModel(Tied)
    params, state = model.init(KEY, X)
    assert len(jax.tree.leaves(params)) == 2

    def loss(params):
        return model.forward(params, state, X, train=True, key=KEY)[0].sum()

    def by_hand(kernel, bias):
        return ((X @ kernel + bias[None]) @ kernel + bias[None]).sum()

    grads = jax.grad(loss)(params)["first"]
    kernel, bias = params["first"]["kernel"], params["first"]["bias"]
    expected = jax.grad(by_hand, argnums=(0, 1))(kernel, bias)
    np.testing.assert_allclose(grads["kernel"], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads["bias"], expected[1], rtol=1e-4, atol=1e-5)


def test_stream_of_any_name_is_fed_from_the_key():
    model = NNXModel(lambda rngs: Noise(nnx.Rngs(params=rngs.params(), noise=rngs.noise())))
    params, state = model.init(KEY, X)
    first, second, again = (
        model.forward(params, state, X, train=True, key=jax.random.key(seed))[0]
        for seed in (1, 2, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != second).all()


class Drawing(MLP):
    """Draws in both modes from a stream that it holds."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.rngs = nnx.Rngs(noise=rngs.noise())

    def __call__(self, x):
        return super().__call__(x + jax.random.normal(self.rngs.noise(), x.shape))


class Given(MLP):
    """Draws in both modes from the streams that it is called with."""

    def __call__(self, x, rngs):
        return super().__call__(x + jax.random.normal(rngs.noise(), x.shape))


@pytest.mark.parametrize("make", [Drawing, Given])
def test_a_network_that_draws_in_evaluation_does_so_repeatably(make):
    toys.check_draws_in_evaluation(NNXModel(make))
    toys.check_draws_in_evaluation(make(nnx.Rngs(0)))


class CalledWithRngs(nnx.Module):
    """As Flax's example of MNIST has it: Dropout holds no stream, and is called with one."""

    def __init__(self, rngs):
        self.first = nnx.Linear(toys.FEATURES, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.last = nnx.Linear(64, toys.CLASSES, rngs=rngs)

    def __call__(self, x, rngs):
        return self.last(self.dropout(nnx.relu(self.first(x)), rngs=rngs))


class CalledWithRngsOrNone(CalledWithRngs):
    def __call__(self, x, rngs=None):
        return super().__call__(x, rngs)


class CalledWithKeywordRngs(CalledWithRngs):
    def __call__(self, x, *, rngs: nnx.Rngs | None = None):
        return super().__call__(x, rngs)


@pytest.mark.parametrize("make", [CalledWithRngs, CalledWithRngsOrNone, CalledWithKeywordRngs])
def test_streams_that_a_module_is_called_with_are_fed_from_the_key(make):
    toys.check_dropout(NNXModel(make))
    model, module = NNXModel(make), make(nnx.Rngs(KEY))
    params, state = model.init(KEY, X)
    outputs, _ = model.forward(params, state, X, train=True, key=KEY)
    np.testing.assert_allclose(outputs, module(X, rngs=nnx.Rngs(KEY)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"give `forward\(..., train=True, key=key\)`"):
        model.forward(params, state, X, train=True)


def test_evaluation_gives_no_streams_where_the_module_does_without():
    class Optional(MLP):
        def __call__(self, x, rngs=None):
            return x if rngs is None else x + jax.random.normal(rngs.noise(), x.shape)

    model = NNXModel(Optional)
    params, state = model.init(KEY, X)
    np.testing.assert_array_equal(model.forward(params, state, X, train=False)[0], X)
    assert (model.forward(params, state, X, train=True, key=KEY)[0] != X).all()


def test_streams_of_the_module_and_of_the_call_share_no_key():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.rngs = nnx.Rngs(noise=rngs.noise())

        def __call__(self, x, rngs):
            held = [self.rngs.noise.key[...], *(self.rngs.noise() for _ in range(4))]
            given = [rngs.noise() for _ in range(4)]
            return jnp.stack([jax.random.key_data(key) for key in [*held, *given]])

    outputs, _ = NNXModel(Two).forward({}, {}, X, train=True, key=KEY)
    assert len(np.unique(outputs, axis=0)) == len(outputs)


def flag_net(name):
    """A module that adds 1 where its flag is set."""
    call = eval(f"lambda self, x, *, {name}: x + int({name})")
    return type("Flagged", (nnx.Module,), {"__call__": call})()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("train", {}, (1, 0)),
        ("training", {}, (1, 0)),
        ("deterministic", {}, (0, 1)),
        ("noisy", {"train_arg": "noisy"}, (1, 0)),
    ],
)
def test_flag_of_the_call_is_set_as_for_linen(name, options, expected):
    model = NNXModel(flag_net(name), **options)
    zeros = jnp.zeros((1, 1))
    found = [model.forward({}, {}, zeros, train=t, key=KEY)[0].item() for t in (True, False)]
    assert tuple(found) == expected


def test_train_arg_that_is_no_parameter_is_an_error():
    with pytest.raises(TypeError, match=r"MLP.__call__ has no parameter 'fit'; it has: x"):
        NNXModel(MLP, train_arg="fit")


def test_training_random_layers_without_a_key_is_an_error():
    model = NNXModel(Dropping)
    with pytest.raises(ValueError, match=r"give `forward\(..., train=True, key=key\)`"):
        model.forward(*model.init(KEY, X), X, train=True)


def test_training_without_random_layers_needs_no_key():
    model = NNXModel(MLP)
    model.forward(*model.init(KEY, X), X, train=True)


def test_trees_go_in_and_come_out():
    model = NNXModel(Adding)
    x = {"a": X, "more": [2 * X]}
    toys.check_init(model, x)
    outputs, _ = model.forward(*model.init(KEY, x), x, train=True, key=KEY)
    assert outputs["sum"].shape == (8, 4)


class TwoInputs(nnx.Module):
    def __init__(self):
        self.one = nnx.Param(jnp.ones(()))

    def __call__(self, a, b):
        return a + 2 * self.one[...] * b


def test_several_inputs():
    toys.check_unpack(TwoInputs())


@pytest.mark.parametrize("wrong", [lambda rngs: None, None, 3, lambda rngs: [MLP(rngs)]])
def test_what_is_no_nnx_module_is_an_error(wrong):
    with pytest.raises(TypeError, match=r"NNXModel takes a flax.nnx.Module, or a function"):
        NNXModel(wrong)


def test_instance_learns_and_compiles_once():
    toys.check_learns(MLP(nnx.Rngs(0)))


def test_factory_learns_and_compiles_once():
    toys.check_learns(NNXModel(Both))


def test_found_by_name_and_by_type():
    assert solstice.compat.NNXModel is NNXModel
    assert type(solstice.compat.as_model(MLP(nnx.Rngs(0)))) is NNXModel
