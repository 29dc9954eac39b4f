"""LoRA: a model whose weights are fixed, with trained thin matrices beside them."""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equinox_nets import Stateful
from ready_made import ADAM

import solstice
from solstice import checkpoint
from solstice.compat import EquinoxModel, as_model, lora

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 32).astype(np.int32)
NET = eqx.nn.MLP(6, 3, 8, 1, key=jax.random.key(0))
TRAINED = as_model(NET).init(jax.random.key(0), X)[0]
BATCH_NORM = partial(eqx.nn.make_with_state(Stateful), 8, 3, True, 0.0)


def experiment(model, **options):
    return solstice.ClassificationExperiment(model, ADAM, 3, sample_input=X, **options)


def test_at_the_start_the_outputs_are_those_of_the_model():
    model = as_model(NET)
    wrapped = lora(model, rank=2)
    params, state = wrapped.init(jax.random.key(5), X)
    expected, _ = model.forward(*model.init(jax.random.key(5), X), X, train=False)
    found, same = wrapped.forward(params, state, X, train=False)
    np.testing.assert_array_equal(found, expected)
    assert eqx.tree_equal(same, state)


def test_only_the_matrices_are_trained_and_in_the_state_of_the_optimiser(tmp_path):
    model = lora(NET, 2, "*/weight", params=TRAINED)
    start = experiment(model)
    exp = start.train((X, Y), batch_size=8, num_epochs=2)
    assert {*exp.params} == {"layers/0/weight", "layers/1/weight"}
    shapes = jax.tree.map(jnp.shape, exp.params, is_leaf=eqx.is_array)
    assert shapes["layers/0/weight"] == {"a": (8, 2), "b": (2, 6)}
    assert jax.tree.structure(exp.opt_state[0]) == jax.tree.structure(exp.params)
    assert eqx.tree_equal(exp.state["base"], TRAINED)
    for before, after in zip(
        jax.tree.leaves(start.params), jax.tree.leaves(exp.params), strict=True
    ):
        assert not np.array_equal(before, after)
    # Saved apart, and put into another Experiment.
    checkpoint.save(tmp_path / "lora", exp.params)
    again = experiment(model)
    again = again.with_params(checkpoint.load(tmp_path / "lora", like=again.params))
    np.testing.assert_array_equal(again(X), exp(X))
    # Or the whole Experiment, into one with an equal model of another process.
    checkpoint.save(tmp_path / "whole", exp)
    fresh = experiment(lora(NET, 2, "*/weight", params=jax.tree.map(jnp.zeros_like, TRAINED)))
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "whole", like=fresh)(X), exp(X))
    assert "params=" not in repr(model)


def test_merged_params_give_the_same_outputs():
    model = lora(NET, 2, params=TRAINED, alpha=4)
    exp = experiment(model, micro_batches=2).train((X, Y), batch_size=16, num_epochs=2)
    merged = model.merge(exp.params, exp.state)
    plain = experiment(NET).with_params(merged)
    np.testing.assert_allclose(plain(X), exp(X), rtol=1e-6, atol=1e-6)
    assert np.abs(plain(X) - experiment(NET).with_params(TRAINED)(X)).max() > 1e-3
    for path, pair in exp.params.items():
        layer = int(path.split("/")[1])
        whole = np.float64(pair["a"]) @ np.float64(pair["b"]) * (4 / 2)
        found = np.float64(merged.layers[layer].weight) - TRAINED.layers[layer].weight
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6)
        assert np.linalg.matrix_rank(found, tol=1e-4) <= 2


def test_the_state_of_the_model_is_given_and_moves_on():
    plain = experiment(EquinoxModel(BATCH_NORM)).train((X, Y), batch_size=8)
    model = lora(EquinoxModel(BATCH_NORM), 2, params=plain.params, state=plain.state)
    exp = experiment(model)
    assert eqx.tree_equal(exp.state["model"], plain.state)
    np.testing.assert_allclose(exp(X), plain(X), rtol=1e-6)
    exp = exp.train((X, Y), batch_size=8)
    assert not eqx.tree_equal(exp.state["model"], plain.state)
    assert eqx.tree_equal(exp.state["base"], plain.params)


@jax.tree_util.register_static
class Shapes:
    """A model with weights of these shapes."""

    def __init__(self, *shapes, dtype=jnp.float32):
        self.shapes, self.dtype = shapes, dtype

    def init(self, key, x, /):
        return {f"w{i}": jnp.ones(shape, self.dtype) for i, shape in enumerate(self.shapes)}, ()

    def forward(self, params, state, x, /, *, train, key=None):
        return params, state


@pytest.mark.parametrize(
    ("shape", "rank", "sides"),
    [
        ((3, 3, 64, 128), 4, (576, 128)),
        ((128, 64, 3, 3), 4, (128, 576)),
        ((512, 8, 64), 4, (512, 512)),
        ((8, 64, 512), 4, (512, 512)),
        ((10, 3), 8, (10, 3)),
        ((1, 1), 8, (1, 1)),
    ],
)
def test_a_weight_is_cut_where_it_is_squarest(shape, rank, sides):
    [pair] = lora(Shapes(shape), rank).init(jax.random.key(0), X)[0].values()
    inner = min(rank, *sides)
    assert (pair["a"].shape, pair["b"].shape) == ((sides[0], inner), (inner, sides[1]))


def test_half_precision_weights_keep_their_dtype_and_the_matrices_do_not():
    model = lora(Shapes((4, 4), (4,), dtype=jnp.bfloat16))
    params, state = model.init(jax.random.key(0), X)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    merged = model.merge(params, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
    assert {*params} == {"w0"}


def test_weights_are_chosen_by_patterns_or_a_function():
    shapes = Shapes((4, 4), (4, 4), (4,))
    assert {*lora(shapes, on="w1").init(jax.random.key(0), X)[0]} == {"w1"}
    assert {*lora(shapes, on=["w1", "w0"]).init(jax.random.key(0), X)[0]} == {"w0", "w1"}
    assert {*lora(shapes, on=lambda p: p > "w0").init(jax.random.key(0), X)[0]} == {"w1"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on": "*/kernel"}, "'*/kernel' matches no weight with two axes or more. These are: "),
        ({"on": ["*/weight", "*/bias"]}, "'*/bias' matches no weight"),
        ({"on": lambda path: False}, "matches no weight"),
        (
            {"params": {"layers": 1.0 * np.ones(2)}},
            "params do not fit the model: at `layers/0/weight` the model has float32[8, 6], and "
            "they have nothing",
        ),
        ({"state": {"mean": np.ones(3)}}, "state do not fit the model: at `mean`"),
        (
            {"params": jax.tree.map(lambda x: x.astype(jnp.bfloat16), TRAINED)},
            "float32[8, 6], and they have bfloat16[8, 6]",
        ),
    ],
)
def test_what_does_not_fit_is_named(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        lora(NET, **options).init(jax.random.key(0), X)


def test_an_empty_choice_is_refused():
    with pytest.raises(ValueError, match="on must be a pattern"):
        lora(NET, on=[])
