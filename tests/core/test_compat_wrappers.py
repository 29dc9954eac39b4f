"""Averaged weights, frozen weights and bad updates left out: optimisers around optimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equinox_nets import Stateless
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice.compat import (
    as_optimizer,
    ema,
    freeze,
    skip_nonfinite,
    track_norms,
)
from solstice.testing import OptimizerConformance, Sgd


class TestEma(OptimizerConformance):
    def build(self, *, learning_rate):
        return ema(Sgd(learning_rate), 0.5)


class TestFreeze(OptimizerConformance):
    unsupported = {
        "test_it_works_sharded": "its params are one array, which cannot be frozen alone"
    }

    def build(self, *, learning_rate):
        return freeze(Sgd(learning_rate), lambda path: path.split("/")[-1] in ("1", "bias"))


# Averages


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([0.0, 0.5, 0.9, 0.9999]), st.lists(st.floats(-9, 9), min_size=1, max_size=8))
def test_the_average_is_that_of_adam(decay, gradients):
    optimizer = ema(Sgd(0.5), decay)
    params = {"w": jnp.float32(1)}
    state = optimizer.init(params)
    assert optimizer.eval_params(state, params) == params
    raw = 0.0
    for number, gradient in enumerate(gradients, 1):
        params, state = optimizer.step({"w": jnp.float32(gradient)}, state, params)
        raw = decay * raw + (1 - decay) * float(params["w"])
        found = optimizer.eval_params(state, params)["w"]
        np.testing.assert_allclose(found, raw / (1 - decay**number), rtol=1e-5, atol=1e-5)


def test_small_changes_of_weights_in_half_precision_are_not_lost():
    optimizer = ema(Sgd(0.0), 0.99)
    params = jnp.ones(3, jnp.bfloat16)
    state = optimizer.init(params)
    for value in [1.0] * 5 + [1.5] * 100:
        _, state = optimizer.step(jnp.zeros_like(params), state, jnp.full_like(params, value))
    average = optimizer.eval_params(state, params)
    assert average.dtype == jnp.bfloat16
    np.testing.assert_allclose(average.astype(np.float32), np.full(3, 1.48), rtol=0.01)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([0.0, 0.5, 0.999]), st.lists(st.floats(-9, 9), min_size=1, max_size=8))
def test_without_its_correction_the_average_starts_at_the_initial_weights(decay, gradients):
    optimizer = ema(Sgd(0.5), decay, debias=False)
    params = {"w": jnp.float32(1)}
    state, average = optimizer.init(params), 1.0
    for gradient in gradients:
        params, state = optimizer.step({"w": jnp.float32(gradient)}, state, params)
        average = decay * average + (1 - decay) * float(params["w"])
        found = optimizer.eval_params(state, params)["w"]
        np.testing.assert_allclose(found, average, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [lambda o: o, track_norms, lambda o: freeze(o, "frozen"), lambda o: skip_nonfinite(ema(o))],
    ids=["alone", "norms", "freeze", "skip"],
)
def test_a_step_that_is_left_out_does_not_move_the_average(wrap, debias):
    """As if the steps with a NaN had never been."""
    params = {"w": jnp.float32(1), "frozen": jnp.float32(5)}
    optimizer = ema(wrap(skip_nonfinite(Sgd(0.5))), 0.9, debias=debias)
    averages = []
    for gradients in [[np.nan, 1, np.nan, np.nan, -3, np.nan], [1, -3]]:
        state, now = optimizer.init(params), params
        for gradient in gradients:
            grads = {"w": jnp.float32(gradient), "frozen": jnp.float32(0)}
            now, state = jax.jit(optimizer.step)(grads, state, now)
        averages.append(optimizer.eval_params(state, now))
        assert state[2] == 2
    assert averages[0] == averages[1]
    assert averages[0]["w"] != now["w"]


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan"), 2])
def test_a_decay_is_below_one(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        ema(Sgd(0.1), decay)


# Frozen weights

PARAMS = {"encoder": {"w": jnp.arange(3.0), "b": jnp.ones(2)}, "head": {"w": jnp.ones(3)}}


@jax.tree_util.register_static
class Momentum:
    """An optimiser that keeps something for each param, and tells of what it is given."""

    def init(self, params, /):
        return jax.tree.map(jnp.zeros_like, params)

    def step(self, grads, state, params, /, *, value=None, value_fn=None, **extra):
        loss = jnp.zeros(()) if value_fn is None else value_fn(params)
        state = jax.tree.map(jnp.add, state, grads)
        return jax.tree.map(lambda p, s: p - s - loss, params, state), state

    def eval_params(self, state, params, /):
        return jax.tree.map(lambda p: p + 1, params)


@pytest.mark.parametrize(
    "frozen", ["encoder/*", ["encoder/w", "*/b"], lambda path: path.startswith("encoder")]
)
def test_what_is_frozen_stays_and_has_no_state(frozen):
    optimizer = freeze(Momentum(), frozen)
    state = optimizer.init(PARAMS)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(3,)]
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    params, state = jax.jit(optimizer.step)(grads, state, PARAMS)
    evaluated = optimizer.eval_params(state, params)
    for name in ["w", "b"]:
        np.testing.assert_array_equal(params["encoder"][name], PARAMS["encoder"][name])
        np.testing.assert_array_equal(evaluated["encoder"][name], PARAMS["encoder"][name])
    np.testing.assert_array_equal(params["head"]["w"], np.zeros(3))
    np.testing.assert_array_equal(evaluated["head"]["w"], np.ones(3))


def test_a_line_search_sees_the_loss_of_all_weights():
    optimizer = freeze(Momentum(), "encoder/*")
    grads = jax.tree.map(jnp.zeros_like, PARAMS)

    def loss(params):
        return params["encoder"]["b"].sum() + params["head"]["w"].sum()

    params, _ = optimizer.step(grads, optimizer.init(PARAMS), PARAMS, value_fn=loss)
    np.testing.assert_array_equal(params["head"]["w"], np.full(3, 1.0 - 5.0))


@pytest.mark.parametrize(
    ("frozen", "which"),
    [
        ("decoder/*", "no param"),
        ("*", "all params"),
        (["encoder/*", "hade/*"], "'hade/\\*' matches no param"),
        (lambda path: False, "no param"),
    ],
)
def test_a_pattern_of_nothing_or_all_names_the_params(frozen, which):
    with pytest.raises(ValueError, match=f"{which}.*: encoder/b, encoder/w, head/w"):
        freeze(Momentum(), frozen).init(PARAMS)


# Together


def test_wrapped_alike_is_alike_so_that_nothing_is_compiled_twice():
    optimizer = Sgd(0.1)
    assert ema(optimizer, 0.9) == ema(optimizer, 0.9)
    assert ema(optimizer, 0.9) != ema(optimizer, 0.8)
    assert ema(optimizer, 0.9) != ema(optimizer, 0.9, debias=False)
    assert freeze(optimizer, ["a"]) == freeze(optimizer, "a")
    assert as_optimizer(ema(optimizer)) is not None


def test_an_experiment_evaluates_the_average_and_keeps_what_is_frozen():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 6)).astype(np.float32)
    data = solstice.data.batches((x, (x[:, 0] > 0).astype(int)), 8)
    optimizer = ema(freeze(Sgd(0.5), "first/*"), 0.9)
    net = Stateless(8, 2, batch_norm=False, dropout=0.0, key=jax.random.key(0))
    exp = solstice.ClassificationExperiment(net, optimizer, 2, sample_input=x)
    trained = exp.train(data, num_epochs=5, callbacks=[])
    np.testing.assert_array_equal(trained.params.first.weight, exp.params.first.weight)
    assert np.any(trained.params.last.weight != exp.params.last.weight)
    averaged = trained.learner.eval_params()
    assert np.any(averaged.last.weight != trained.params.last.weight)
    expected = jax.vmap(lambda row: averaged.last(jax.nn.relu(averaged.first(row))))(x)
    np.testing.assert_allclose(trained(x), expected, rtol=1e-5, atol=1e-6)
