"""FlaxModel: a Linen module as a Model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import solstice
from solstice_flax import FlaxModel

KEY, X = toys.KEY, toys.X


class MLP(nn.Module):
    features: list[int]  # a list makes the module unhashable

    @nn.compact
    def __call__(self, x):
        for size in self.features[:-1]:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.features[-1])(x)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(16)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
        return nn.Dense(toys.CLASSES)(nn.relu(x))


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        x = nn.relu(nn.Dense(64)(x))
        x = nn.Dropout(0.5)(x, deterministic=deterministic)
        return nn.Dense(toys.CLASSES)(x)


class Both(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool, deterministic: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(64)(x))
        x = nn.Dropout(0.2)(nn.relu(x), deterministic=deterministic)
        return nn.Dense(toys.CLASSES)(x)


class Noisy(nn.Module):
    """Reads random streams of its own names."""

    @nn.compact
    def __call__(self, x, train: bool):
        if train:
            for stream in ("noise", "jitter"):
                x = x + jax.random.normal(self.make_rng(stream), x.shape)
        return nn.Dense(toys.CLASSES)(x)


class Sowing(nn.Module):
    collection: str = "intermediates"

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x))
        self.sow(self.collection, "hidden", x)
        return nn.Dense(toys.CLASSES)(x)


class Summing(nn.Module):
    """Takes a tree and gives a tree."""

    @nn.compact
    def __call__(self, x):
        return {"sum": nn.Dense(4)(x["a"]) + nn.Dense(4)(x["more"][0])}


class Bare(nn.Module):
    def __call__(self, x):
        return x


def flag_net(*names):
    """A module without layers that adds 1 in what its flags say is training."""
    parameters = ", ".join(names)
    source = f"lambda self, x, *, {parameters}: x + sum([{parameters}])"
    call = eval(source)
    call.__name__ = "__call__"
    return type("Flagged", (nn.Module,), {"__call__": call, "__module__": __name__})()


def test_unhashable_module_is_a_model():
    module = MLP([16, toys.CLASSES])
    with pytest.raises(TypeError):
        hash(module)
    toys.check_model(FlaxModel(module))


def test_values_are_those_of_linen():
    module = MLP([16, toys.CLASSES])
    params, state = FlaxModel(module).init(KEY, X)
    toys.assert_trees_equal({"params": params}, dict(module.init(KEY, X)))
    assert state == {}
    outputs, _ = FlaxModel(module).forward(params, state, X, train=True, key=KEY)
    np.testing.assert_array_equal(outputs, module.apply({"params": params}, X))


def test_another_key_gives_other_values():
    model = FlaxModel(MLP([4, toys.CLASSES]))
    assert toys.trees_differ(model.init(KEY, X), model.init(jax.random.key(1), X))


def test_batch_norm():
    toys.check_batch_norm(FlaxModel(Normed()))


def test_batch_norm_statistics_are_state_and_not_params():
    params, state = FlaxModel(Normed()).init(KEY, X)
    assert state.keys() == {"batch_stats"}
    assert jax.tree.map(jnp.shape, state["batch_stats"]["BatchNorm_0"]) == {
        "mean": (16,),
        "var": (16,),
    }
    assert params["BatchNorm_0"].keys() == {"scale", "bias"}


def test_dropout():
    toys.check_dropout(FlaxModel(Dropping()))


def test_dropout_without_a_key_is_an_error_in_training():
    model = FlaxModel(Dropping())
    with pytest.raises(Exception, match="dropout"):
        model.forward(*model.init(KEY, X), X, train=True)


def test_streams_of_any_name_get_a_key_and_differ():
    model = FlaxModel(Noisy())
    toys.check_model(model)
    params, state = model.init(KEY, X)
    first, _ = model.forward(params, state, X, train=True, key=jax.random.key(1))
    same, _ = model.forward(params, state, X, train=True, key=jax.random.key(1))
    other, _ = model.forward(params, state, X, train=True, key=jax.random.key(2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_streams_are_independent_of_each_other():
    class Two(nn.Module):
        def __call__(self, x, train: bool):
            del x, train
            draws = [jax.random.uniform(self.make_rng(name)) for name in ("noise", "jitter")]
            return jnp.stack(draws)

    model = FlaxModel(Two())
    outputs, _ = model.forward({}, {}, X, train=True, key=KEY)
    assert outputs[0] != outputs[1]


class Drawing(nn.Module):
    """Draws in both modes, as a variational autoencoder may."""

    streams: tuple[str, ...] = ("lstm",)

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16)(x))
        for stream in self.streams:
            x = x + jax.random.normal(self.make_rng(stream), x.shape)
        return nn.Dense(toys.CLASSES)(x)


@pytest.mark.parametrize("streams", [("lstm",), ("one", "other"), ("params",), ("dropout",)])
def test_a_network_that_draws_in_evaluation_does_so_repeatably(streams):
    toys.check_draws_in_evaluation(Drawing(streams))


def test_evaluation_draws_nothing_where_the_network_does_without():
    class Guarded(nn.Module):
        def __call__(self, x):
            if self.has_rng("noise"):
                x = x + jax.random.normal(self.make_rng("noise"), x.shape)
            return x

    model = FlaxModel(Guarded())
    np.testing.assert_array_equal(model.forward({}, {}, X, train=False)[0], X)


def test_a_single_stream_is_the_key_as_by_hand():
    module = Dropping()
    params, state = FlaxModel(module).init(KEY, X)
    outputs, _ = FlaxModel(module).forward(params, state, X, train=True, key=KEY)
    by_hand = module.apply({"params": params}, X, deterministic=False, rngs={"dropout": KEY})
    np.testing.assert_array_equal(outputs, by_hand)


class Steps(nn.Module):
    """Adds noise at each of the columns that `nn.scan` goes through."""

    splits: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        class Cell(nn.Module):
            @nn.compact
            def __call__(self, carry, x):
                return carry, x + jax.random.normal(self.make_rng("noise"), x.shape)

        split = {name: name == "noise" for name in ("params", *self.splits)}
        scanned = nn.scan(Cell, split_rngs=split, in_axes=1, out_axes=1)
        return scanned()(jnp.zeros(()), x)[1]


@pytest.mark.parametrize("train", [True, False])
def test_a_stream_that_a_scan_splits_differs_from_step_to_step(train):
    outputs, _ = FlaxModel(Steps(("noise",))).forward({}, {}, X, train=train, key=KEY)
    noise = outputs - X
    assert len(np.unique(noise[0])) == toys.FEATURES
    by_hand = Steps(("noise",)).apply({}, X, rngs={"noise": KEY})
    np.testing.assert_array_equal(outputs, by_hand)


def test_a_stream_that_a_scan_shuts_out_is_fed_from_params_as_linen_does():
    outputs, _ = FlaxModel(Steps(())).forward({}, {}, X, train=True, key=KEY)
    assert (outputs != X).all()


class Decoding(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2, decode=True)(x, x)


def test_a_decoder_with_a_cache_is_initialised_with_a_sequence_and_called_with_tokens():
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    module, model = Decoding(), FlaxModel(Decoding())
    params, state = model.init(KEY, x)
    variables = module.init(KEY, x)
    toys.assert_trees_equal({"params": params, **state}, dict(variables))
    for index in range(3):
        token = x[:, index : index + 1]
        evaluated, same = model.forward(params, state, token, train=False)
        assert same is state
        outputs, state = model.forward(params, state, token, train=True)
        expected, new = module.apply(variables, token, mutable=["cache"])
        variables = {"params": params, **new}
        np.testing.assert_array_equal(outputs, expected)
        np.testing.assert_array_equal(evaluated, expected)
        toys.assert_trees_equal(state, dict(new))


def test_what_is_sown_does_not_grow_the_state():
    model = FlaxModel(Sowing())
    toys.check_model(model)
    _, state = model.init(KEY, X)
    assert jax.tree.leaves(state) == []


def test_what_is_sown_into_a_collection_of_another_name_does_not_grow_the_state():
    model = FlaxModel(Sowing("losses"))
    params, state = model.init(KEY, X)
    for _ in range(2):
        before = toys.types_of(state)
        _, state = model.forward(params, state, X, train=True, key=KEY)
        assert toys.types_of(state) == before


@pytest.mark.parametrize("name", ["train", "training", "is_training"])
def test_flag_that_is_true_in_training(name):
    assert responses(FlaxModel(flag_net(name))) == (1, 0)


@pytest.mark.parametrize("name", ["deterministic", "eval", "inference", "use_running_average"])
def test_flag_that_is_true_in_evaluation(name):
    assert responses(FlaxModel(flag_net(name))) == (0, 1)


def test_several_flags_at_once():
    assert responses(FlaxModel(flag_net("train", "is_training", "deterministic"))) == (2, 1)
    toys.check_model(FlaxModel(Both()))


def test_train_arg_names_a_flag_of_another_name():
    assert responses(FlaxModel(flag_net("is_noisy"), train_arg="is_noisy")) == (1, 0)
    as_option = solstice.compat.as_model(flag_net("is_noisy"), train_arg="is_noisy")
    assert responses(as_option) == (1, 0)


def responses(model):
    """What a flag net adds in training, and in evaluation."""
    zeros = jnp.zeros((1, 1))
    trained, _ = model.forward({}, {}, zeros, train=True, key=KEY)
    evaluated, _ = model.forward({}, {}, zeros, train=False)
    return int(trained[0, 0]), int(evaluated[0, 0])


def test_train_arg_that_is_no_parameter_is_an_error():
    with pytest.raises(
        TypeError, match=r"Normed.__call__ has no parameter 'fit'; it has: train, x"
    ):
        FlaxModel(Normed(), train_arg="fit")


@pytest.mark.parametrize("wrong", [Normed, lambda x: x, None, {"params": 1}])
def test_what_is_no_linen_module_is_an_error(wrong):
    with pytest.raises(TypeError, match=r"FlaxModel takes a flax.linen.Module"):
        FlaxModel(wrong)


def test_trees_go_in_and_come_out():
    model = FlaxModel(Summing())
    x = {"a": X, "more": [X[:, :2]]}
    toys.check_init(model, x)
    outputs, _ = model.forward(*model.init(KEY, x), x, train=True, key=KEY)
    assert outputs["sum"].shape == (8, 4)


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, a, b, train):
        del train
        one = self.param("one", nn.initializers.ones, ())
        return a + 2 * one * b


def test_several_inputs():
    toys.check_unpack(TwoInputs())


def test_params_of_integers_are_refused():
    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            count = self.param("count", lambda key: jnp.ones((), jnp.int32))
            return nn.Dense(toys.CLASSES)(x) * count.astype(x.dtype)

    with pytest.raises(TypeError, match=r"int32 at `\['count'\]`.*another collection"):
        solstice.ClassificationExperiment(Counted(), toys.Sgd(), sample_input=X)


def test_module_without_params():
    model = FlaxModel(Bare())
    assert model.init(KEY, X) == ({}, {})
    np.testing.assert_array_equal(model.forward({}, {}, X, train=False)[0], X)


@pytest.mark.parametrize("module", [MLP([16, toys.CLASSES]), Both()], ids=["mlp", "both"])
def test_learns_and_compiles_once(module):
    toys.check_learns(module)


def test_found_by_name_and_by_type():
    module = MLP([4, toys.CLASSES])
    assert solstice.compat.FlaxModel is FlaxModel
    assert type(solstice.compat.as_model(module)) is FlaxModel


def test_train_arg_wins_over_the_meaning_of_the_name():
    assert responses(FlaxModel(flag_net("deterministic"), train_arg="deterministic")) == (1, 0)
