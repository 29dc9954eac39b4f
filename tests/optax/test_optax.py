"""OptaxOptimizer does what Optax does, and fits the Optimizer protocol."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import solstice
from solstice import compat
from solstice.compat import AdapterError, Optimizer, as_model, as_optimizer
from solstice_optax import OptaxOptimizer


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes int32 counts into float32 (Adam's bias correction, for one)."""
    with jax.numpy_dtype_promotion("standard"):
        yield


RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 3.0], np.float32) + np.float32(0.5)


def loss_fn(params):
    return jnp.mean((X @ params["w"] + params["b"] - Y) ** 2)


def initial_params():
    return {"w": jnp.zeros(3), "b": jnp.zeros(())}


def run(optimizer, steps, **extra):
    """Params and state after some compiled steps of an adapter."""

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss_fn)(params)
        return optimizer.step(grads, state, params, value=value, value_fn=loss_fn, **extra)

    params = initial_params()
    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def run_optax(tx, steps, *names):
    """The same by hand, where `update` is given the named extra arguments."""

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss_fn)(params)
        every = {"value": value, "grad": grads, "value_fn": loss_fn}
        updates, state = tx.update(grads, state, params, **{name: every[name] for name in names})
        return optax.apply_updates(params, updates), state

    params = initial_params()
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)


def differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


CASES = {
    "adam": (optax.adam(0.1), ()),
    "adamw": (optax.adamw(0.1, weight_decay=0.1), ()),
    "sgd with momentum": (optax.sgd(0.05, momentum=0.9), ()),
    "clip and sgd": (optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.05)), ()),
    "schedule": (optax.sgd(optax.cosine_decay_schedule(0.1, 20)), ()),
    "lbfgs": (optax.lbfgs(), ("value", "grad", "value_fn")),
    "lbfgs in a chain": (
        optax.chain(optax.identity(), optax.lbfgs()),
        ("value", "grad", "value_fn"),
    ),
    "polyak": (optax.polyak_sgd(), ("value",)),
    "plateau": (
        optax.chain(optax.sgd(0.05), contrib.reduce_on_plateau(patience=1, rtol=0.5)),
        ("value",),
    ),
    "ema of updates": (optax.chain(optax.sgd(0.05), optax.ema(0.9)), ()),
    "partition": (
        optax.partition(
            {"fast": optax.sgd(0.1), "slow": optax.adam(0.01)}, {"w": "fast", "b": "slow"}
        ),
        (),
    ),
    "sam": (contrib.sam(optax.sgd(0.05), optax.sgd(0.01), sync_period=2), ()),
    "sam in a chain": (
        optax.chain(optax.clip(9.0), contrib.sam(optax.sgd(0.05), optax.sgd(0.01), sync_period=2)),
        (),
    ),
    "schedule-free": (contrib.schedule_free_adamw(0.1), ()),
    "injected": (optax.inject_hyperparams(optax.adam)(learning_rate=0.1), ()),
}


@pytest.mark.parametrize(("tx", "names"), CASES.values(), ids=CASES)
def test_twenty_steps_equal_a_loop_written_by_hand(tx, names):
    params, state = run(OptaxOptimizer(tx), 20)
    expected_params, expected_state = run_optax(tx, 20, *names)
    assert_same(params, expected_params)
    assert_same(state, expected_state)
    assert loss_fn(params) < loss_fn(initial_params())


@pytest.mark.parametrize(("tx", "names"), CASES.values(), ids=CASES)
def test_a_step_keeps_structure_and_types_of_the_state(tx, names):
    del names
    optimizer = OptaxOptimizer(tx)

    def step(params, state):
        value, grads = jax.value_and_grad(loss_fn)(params)
        return optimizer.step(grads, state, params, value=value, value_fn=loss_fn)

    before = initial_params(), optimizer.init(initial_params())
    after = jax.eval_shape(step, *before)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


def test_the_state_is_the_one_that_optax_makes():
    tx = optax.adam(0.1)
    assert_same(OptaxOptimizer(tx).init(initial_params()), tx.init(initial_params()))


def test_lbfgs_finds_the_minimum_and_counts_line_search_steps():
    params, state = run(OptaxOptimizer(optax.lbfgs()), 15)
    np.testing.assert_allclose(params["w"], [1.0, -2.0, 3.0], atol=1e-3)
    np.testing.assert_allclose(params["b"], 0.5, atol=1e-3)
    assert optax.tree_utils.tree_get(state, "value") < 1e-5


def test_opaque_sam_gets_its_gradient_function():
    def sam(**options):
        return contrib.sam(optax.sgd(0.05), contrib.normalize(), sync_period=2, **options)

    opaque, _ = run(OptaxOptimizer(sam(opaque_mode=True)), 5)
    plain, _ = run(OptaxOptimizer(sam()), 10)  # two of its steps are one
    assert_close(opaque, plain)


@pytest.mark.parametrize("tx", [optax.lbfgs(), optax.chain(optax.clip(9.0), optax.lbfgs())])
def test_a_line_search_is_not_stopped_by_extra_arguments(tx):
    plain, _ = run(OptaxOptimizer(tx), 5)
    more, _ = run(OptaxOptimizer(tx), 5, temperature=2.0)
    assert_same(more, plain)


def test_an_error_of_the_loss_that_speaks_of_keywords_is_raised():
    def bad(params):
        return loss_fn(params, speed=1)  # pyright: ignore

    optimizer, params = OptaxOptimizer(optax.lbfgs()), initial_params()
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        optimizer.step(params, optimizer.init(params), params, value=jnp.ones(()), value_fn=bad)


def test_reduce_on_plateau_sees_the_value():
    tx = optax.chain(optax.sgd(0.05), contrib.reduce_on_plateau(patience=1, rtol=0.5))
    optimizer = OptaxOptimizer(tx)
    params = initial_params()
    state = optimizer.init(params)
    grads = jax.grad(loss_fn)(params)
    for _ in range(5):
        params, state = optimizer.step(grads, state, params, value=jnp.asarray(1.0))
    assert optax.tree_utils.tree_get(state, "scale") < 1.0


def test_polyak_without_a_value_is_an_error_of_optax():
    optimizer = OptaxOptimizer(optax.polyak_sgd())
    params = initial_params()
    with pytest.raises(TypeError, match="value"):
        optimizer.step(params, optimizer.init(params), params)


def test_multi_steps_updates_every_third_time_by_the_mean():
    optimizer = OptaxOptimizer(optax.MultiSteps(optax.sgd(1.0), every_k_schedule=3))
    params = {"w": jnp.zeros(2)}
    state = optimizer.init(params)
    seen = []
    for value in [1.0, 2.0, 6.0, 1.0, 1.0, 1.0]:
        params, state = optimizer.step({"w": jnp.full(2, value)}, state, params)
        seen.append(float(params["w"][0]))
    np.testing.assert_allclose(seen, [0, 0, -3, -3, -3, -4], atol=1e-5)


SCHEDULE = optax.linear_schedule(0.0, 1.0, 100)


@pytest.mark.parametrize(
    ("tx", "steps"),
    [
        (optax.adam(SCHEDULE), 4),
        (optax.chain(optax.adam(SCHEDULE), contrib.reduce_on_plateau(patience=1)), 4),
        (optax.chain(contrib.reduce_on_plateau(accumulation_size=9), optax.sgd(SCHEDULE)), 4),
        (optax.MultiSteps(optax.adamw(SCHEDULE), 2), 8),
        (optax.apply_if_finite(optax.sgd(SCHEDULE), 3), 4),
        (optax.chain(optax.sgd(SCHEDULE), optax.ema(0.9)), 4),
    ],
)
def test_the_learning_rate_of_a_schedule_is_that_of_the_newest_update(tx, steps):
    exp = solstice.RegressionExperiment(eqx.nn.Linear(3, 1, key=jax.random.key(0)), tx)
    trainer = solstice.Trainer([solstice.callbacks.LearningRate(SCHEDULE)])
    trainer.fit(exp, (X, Y), batch_size=64 // steps)
    assert trainer.history.rows[0]["lr"] == pytest.approx(0.03)


def test_a_rate_that_something_overrules_is_not_to_be_found():
    def found(tx):
        net = eqx.nn.Linear(3, 1, key=jax.random.key(0))
        exp = solstice.RegressionExperiment(net, tx)
        return solstice.find_learning_rate(exp, (X, Y), batch_size=16)

    def both(learning_rate):
        return optax.chain(optax.scale_by_schedule(SCHEDULE), optax.sgd(learning_rate))

    injected = optax.inject_hyperparams(optax.sgd)
    assert 1e-2 < found(injected(learning_rate=1e-3)).suggestion < 1
    with pytest.raises(ValueError, match=r"there is no learning rate in the state.*inject_hyper"):
        found(optax.adam(SCHEDULE))
    for schedule in [SCHEDULE, optax.constant_schedule(1e-6)]:
        with pytest.raises(ValueError, match=r"overrides the learning rate: `.*hyperparams/learn"):
            found(injected(learning_rate=schedule))
    for tx in [
        optax.chain(injected(learning_rate=1e-3), optax.scale_by_schedule(SCHEDULE)),
        optax.chain(injected(learning_rate=1e-3), contrib.reduce_on_plateau()),
        optax.inject_hyperparams(both)(learning_rate=1e-3),
    ]:
        with pytest.raises(
            ValueError, match=r"a schedule beside .* `.inner.learner/opt_state|`lear"
        ):
            found(tx)


def averaged(tx, decay, gradients, **options):
    """The averages of `compat.ema` after each step, and the params."""
    optimizer = compat.ema(tx, decay, **options)
    params = {"w": jnp.arange(3.0), "b": jnp.zeros(())}
    state, found = optimizer.init(params), []
    step = jax.jit(optimizer.step)
    for gradient in gradients:
        grads = jax.tree.map(lambda p, g=gradient: jnp.full_like(p, g), params)
        params, state = step(grads, state, params)
        found.append((optimizer.eval_params(state, params), params))
    return found


def test_an_average_without_its_correction_is_incremental_update():
    average = {"w": jnp.arange(3.0), "b": jnp.zeros(())}
    update = jax.jit(lambda new, old: optax.incremental_update(new, old, 1 - 0.99))
    for found, params in averaged(optax.adam(0.1), 0.99, np.arange(1, 30), debias=False):
        average = update(params, average)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-7), found, average)


def inner_of_a_chain(tx):
    return optax.chain(optax.clip(1.0), optax.MultiSteps(tx, 2).gradient_transformation())


ONCE_IN_TWO = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "in a chain": inner_of_a_chain,
    "around apply_if_finite": lambda tx: optax.MultiSteps(optax.apply_if_finite(tx, 9), 2),
    "in apply_if_finite": lambda tx: optax.apply_if_finite(inner_of_a_chain(tx), 9),
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, lambda step: step % 2 == 1),
}


@pytest.mark.parametrize("wrap", ONCE_IN_TWO.values(), ids=ONCE_IN_TWO)
@pytest.mark.parametrize("debias", [True, False])
def test_an_average_is_over_updates_and_not_over_micro_steps(wrap, debias):
    gradients = [1.0, 0.5, -0.25]
    expected = averaged(optax.sgd(1.0), 0.9, gradients, debias=debias)
    found = averaged(wrap(optax.sgd(1.0)), 0.9, np.repeat(gradients, 2), debias=debias)
    same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-6))
    same(found[1::2], expected)
    same(found[2::2], expected[:-1])  # the first of two moves nothing
    np.testing.assert_array_equal(found[0][0]["w"], np.arange(3.0))


def test_an_update_that_moves_no_weight_is_in_the_average():
    """A rate that warms up begins at 0."""
    schedule = optax.linear_schedule(0.0, 1.0, 2)
    expected = averaged(optax.sgd(schedule), 0.9, [1.0] * 4)
    found = averaged(optax.MultiSteps(optax.sgd(schedule), 2), 0.9, [1.0] * 8)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found[1::2], expected)


def test_steps_that_are_not_finite_are_not_in_the_average():
    gradients = [1.0, np.nan, -0.25, np.inf]
    found = averaged(optax.apply_if_finite(optax.sgd(1.0), 9), 0.9, gradients)
    expected = averaged(optax.sgd(1.0), 0.9, [1.0, -0.25])
    jax.tree.map(np.testing.assert_array_equal, found[-1], expected[-1])


def test_a_part_that_moves_in_every_step_is_averaged_in_every_step():
    both = {"often": optax.sgd(1.0), "seldom": optax.MultiSteps(optax.sgd(1.0), 2)}
    both["seldom"] = both["seldom"].gradient_transformation()
    tx = optax.multi_transform(both, {"w": "often", "b": "seldom"})
    gradients = [1.0, 0.5, -0.25]
    expected = averaged(optax.sgd(1.0), 0.9, gradients)
    for (average, _), (wanted, _) in zip(averaged(tx, 0.9, gradients), expected, strict=True):
        np.testing.assert_array_equal(average["w"], wanted["w"])


def test_injected_hyperparameters_may_be_changed_in_the_state():
    optimizer = OptaxOptimizer(optax.inject_hyperparams(optax.sgd)(learning_rate=1.0))
    params = {"w": jnp.zeros(2)}
    grads = {"w": jnp.ones(2)}
    params, state = optimizer.step(grads, optimizer.init(params), params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.25)
    params, state = optimizer.step(grads, state, params)
    np.testing.assert_allclose(params["w"], [-1.25, -1.25])


@pytest.mark.parametrize(
    "tx",
    [optax.sgd(0.1), optax.polyak_sgd(), optax.MultiSteps(optax.sgd(0.1), 2)],
    ids=["sgd", "polyak", "multi steps"],
)
def test_unknown_extra_arguments_change_nothing(tx):
    plain, _ = run(OptaxOptimizer(tx), 3)
    more, _ = run(OptaxOptimizer(tx), 3, temperature=2.0, batch=object())
    assert_same(more, plain)


def temperature_alone():
    """A transformation with an extra argument of its own, and no others."""

    def update(updates, state, params=None, *, temperature):
        del params
        return jax.tree.map(lambda g: -temperature * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def temperature_in_a_chain():
    """The same in a chain, which gives all to all, so that all must take all."""
    init, narrow = temperature_alone()

    def update(updates, state, params=None, *, temperature, **others):
        assert "value" in others
        return narrow(updates, state, params, temperature=temperature)

    return optax.chain(optax.sgd(1.0), optax.GradientTransformationExtraArgs(init, update))


@pytest.mark.parametrize(
    ("make", "expected"), [(temperature_alone, -2.0), (temperature_in_a_chain, 2.0)]
)
def test_an_extra_argument_that_a_transformation_names_reaches_it(make, expected):
    optimizer = OptaxOptimizer(make())
    params = {"w": jnp.zeros(2)}
    params, _ = optimizer.step(
        {"w": jnp.ones(2)}, optimizer.init(params), params, value=jnp.zeros(()), temperature=2.0
    )
    np.testing.assert_array_equal(params["w"], [expected, expected])


def test_params_keep_a_half_precision():
    optimizer = OptaxOptimizer(optax.adam(0.1))
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    params, _ = optimizer.step(params, optimizer.init(params), params)
    assert params["w"].dtype == jnp.bfloat16
    assert differ(params, {"w": jnp.ones(2, jnp.bfloat16)})


def test_most_optimizers_evaluate_at_the_params():
    params, state = run(OptaxOptimizer(optax.adam(0.1)), 3)
    assert OptaxOptimizer(optax.adam(0.1)).eval_params(state, params) is params


def test_schedule_free_evaluates_at_its_average():
    optimizer = OptaxOptimizer(contrib.schedule_free_adamw(0.1))
    params, state = run(optimizer, 10)
    average = optimizer.eval_params(state, params)
    assert differ(average, params)
    assert_same(average, contrib.schedule_free_eval_params(state, params))


@pytest.mark.parametrize("both", [True, False])
def test_schedule_free_of_some_params_evaluates_those_at_their_average(both):
    """As `multi_transform` has it: each optimiser sees its own params, and masks of the others."""
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    free = contrib.schedule_free_sgd(0.1)
    other = contrib.schedule_free_sgd(0.2) if both else optax.sgd(0.2)
    mixed = OptaxOptimizer(optax.multi_transform({"x": free, "y": other}, {"a": "x", "b": "y"}))
    alone = {"a": OptaxOptimizer(free), "b": OptaxOptimizer(other)}
    state, own = params, mixed.init(params)
    states = {name: alone[name].init(params[name]) for name in params}
    apart = dict(params)
    for index in range(3):
        grads = {"a": jnp.full(3, index + 1.0), "b": jnp.full(2, index - 1.0)}
        state, own = mixed.step(grads, own, state)
        for name in params:
            apart[name], states[name] = alone[name].step(grads[name], states[name], apart[name])
    assert_same(state, apart)
    expected = {name: alone[name].eval_params(states[name], apart[name]) for name in params}
    assert_same(mixed.eval_params(own, state), expected)
    assert np.all(expected["a"] != apart["a"])


def schedule_free_in_a_chain():
    return optax.chain(optax.clip_by_global_norm(1.0), contrib.schedule_free_sgd(0.1))


def schedule_free_injected():
    return optax.inject_hyperparams(contrib.schedule_free_sgd)(learning_rate=0.1)


def schedule_free_in_multi_steps():
    return optax.MultiSteps(contrib.schedule_free_sgd(0.1), every_k_schedule=2)


@pytest.mark.parametrize(
    ("make", "inner"),
    [
        (schedule_free_in_a_chain, lambda state: state[1]),
        (schedule_free_injected, lambda state: state.inner_state),
        (schedule_free_in_multi_steps, lambda state: state.inner_opt_state),
    ],
)
def test_schedule_free_within_another_evaluates_at_its_average(make, inner):
    optimizer = OptaxOptimizer(make())
    params, state = run(optimizer, 10)
    average = optimizer.eval_params(state, params)
    assert differ(average, params)
    assert_same(average, contrib.schedule_free_eval_params(inner(state), params))
    assert_close(jax.jit(optimizer.eval_params)(state, params), average)


NEED_THE_LOSS = {
    "polyak": (optax.polyak_sgd(), ("value",)),
    "momo": (contrib.momo(), ("value",)),
    "plateau": CASES["plateau"],
    "lbfgs": (optax.lbfgs(), ("value", "grad", "value_fn")),
}


@pytest.mark.parametrize(("tx", "names"), NEED_THE_LOSS.values(), ids=NEED_THE_LOSS)
def test_multi_steps_hands_on_the_loss(tx, names):
    several = optax.MultiSteps(tx, every_k_schedule=2)
    params, state = run(OptaxOptimizer(several), 10)
    expected_params, expected_state = run_optax(several, 10, *names)
    assert_same(params, expected_params)
    assert_same(state, expected_state)


def test_sophia_gets_the_loss_as_its_objective():
    params, _ = run(OptaxOptimizer(contrib.sophia(0.01)), 5)
    tx = contrib.sophia(0.01)
    expected, own = initial_params(), tx.init(initial_params())

    @jax.jit
    def step(params, own):
        updates, own = tx.update(jax.grad(loss_fn)(params), own, params, obj_fn=loss_fn)
        return optax.apply_updates(params, updates), own

    for _ in range(5):
        expected, own = step(expected, own)
    assert_close(params, expected)


def test_an_argument_that_one_part_refuses_and_another_needs_is_named():
    sam = contrib.sam(optax.sgd(0.05), optax.sgd(0.01))
    parts = optax.partition({"x": optax.polyak_sgd(), "y": sam}, {"w": "x", "b": "y"})
    with pytest.raises(TypeError, match=r"one part of this optimiser needs value, .* unex") as e:
        run(OptaxOptimizer(parts), 1)
    assert "'value'" in str(e.value.__cause__)
    assert "sam" in str(e.value.__cause__)
    deaf = optax.GradientTransformationExtraArgs(
        sam.init, lambda g, s, p=None, **_: sam.update(g, s, p)
    )  # as the error says
    run(
        OptaxOptimizer(optax.partition({"x": optax.polyak_sgd(), "y": deaf}, {"w": "x", "b": "y"})),
        2,
    )


def test_lookahead_trains_its_fast_params_and_evaluates_its_slow_ones():
    tx = optax.lookahead(optax.adam(0.1), sync_period=3, slow_step_size=0.5)
    params, state = run(OptaxOptimizer(tx), 10)

    @jax.jit
    def step(pair, own):
        updates, own = tx.update(jax.grad(loss_fn)(pair.fast), own, pair)
        return optax.apply_updates(pair, updates), own

    pair = optax.LookaheadParams.init_synced(initial_params())
    own = tx.init(pair)
    for _ in range(10):
        pair, own = step(pair, own)
    assert_same(params, pair.fast)
    assert_same(OptaxOptimizer(tx).eval_params(state, params), pair.slow)
    assert differ(pair.slow, pair.fast)


def test_lookahead_warns_of_nothing(caplog):
    OptaxOptimizer(optax.lookahead(optax.sgd(0.1), 2, 0.5)).init(initial_params())
    assert caplog.records == []


def within_a_chain(lookahead):
    return optax.chain(optax.clip(1.0), lookahead)


def within_multi_steps(lookahead):
    return optax.MultiSteps(lookahead, 2)


def within_a_partition(lookahead):
    return optax.partition({"x": lookahead, "y": optax.sgd(0.1)}, {"w": "x", "b": "y"})


@pytest.mark.parametrize("wrap", [within_a_chain, within_multi_steps, within_a_partition])
def test_lookahead_within_another_is_refused_with_what_to_write(wrap):
    optimizer = OptaxOptimizer(wrap(optax.lookahead(optax.sgd(0.1), 2, 0.5)))
    with pytest.raises(TypeError, match=r"outermost.*`optax\.lookahead\(optax\.chain\("):
        optimizer.init(initial_params())


def test_lookahead_trains_and_tests_in_an_experiment():
    tx = optax.lookahead(optax.sgd(0.05), sync_period=5, slow_step_size=0.5)
    learner = solstice.experiments.Learner(OneWeight(), tx, sample_input=X)
    learner, _ = learner.update(squares, (X, Y))
    assert differ(learner.params, learner.eval_params())
    np.testing.assert_array_equal(learner.eval_params()["w"], np.zeros(3))


@jax.tree_util.register_static
class OneWeight:
    """A linear model that begins at zero."""

    def init(self, key, x, /):
        del key
        return {"w": jnp.zeros(x.shape[-1])}, ()

    def forward(self, params, state, x, /, *, train, key=None):
        del train, key
        return x @ params["w"], state


def squares(model, batch):
    x, y = batch
    return (model(x) - y) ** 2, None, {}


@pytest.mark.parametrize("wrong", [0.1, None, optax.adam, "adam", (1, 2), lambda grads: grads])
def test_what_is_no_transformation_is_refused(wrong):
    with pytest.raises(TypeError, match=r"optax\.GradientTransformation.*OptaxOptimizer\("):
        OptaxOptimizer(wrong)


def test_the_adapter_is_static_and_an_optimizer():
    optimizer = OptaxOptimizer(optax.adam(0.1))
    assert isinstance(optimizer, Optimizer)
    assert jax.tree.leaves(optimizer) == []
    assert optimizer == jax.tree.map(lambda x: x, optimizer)
    assert optimizer != OptaxOptimizer(optimizer.tx)
    assert len({optimizer, OptaxOptimizer(optimizer.tx)}) == 2


def test_solstice_compat_has_it_by_name():
    assert solstice.compat.OptaxOptimizer is OptaxOptimizer
    assert "OptaxOptimizer" in dir(solstice.compat)


@pytest.mark.parametrize(
    "tx",
    [
        optax.adam(0.1),
        optax.chain(optax.clip(1.0), optax.sgd(0.1)),
        optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2),
    ],
    ids=["adam", "chain", "multi steps"],
)
def test_as_optimizer_gives_one_adapter_for_one_object(tx):
    optimizer = as_optimizer(tx)
    assert type(optimizer) is OptaxOptimizer
    assert optimizer.tx is tx
    assert as_optimizer(tx) is optimizer
    assert as_optimizer(optimizer) is optimizer


def test_a_copy_of_the_tuple_is_the_same_object_to_as_optimizer():
    tx = optax.adam(0.1)
    optimizer = as_optimizer(tx)
    assert as_optimizer(optax.GradientTransformationExtraArgs(tx.init, tx.update)) is optimizer


def test_another_object_has_another_adapter():
    one, other = optax.adam(0.1), optax.adam(0.1)
    adapter = as_optimizer(one)
    assert as_optimizer(other) is not adapter
    assert as_optimizer(one) is adapter


def test_as_optimizer_takes_no_options_for_optax():
    with pytest.raises(TypeError, match="speed"):
        as_optimizer(optax.adam(0.1), speed=2)


def test_as_model_says_that_it_is_an_optimizer():
    with pytest.raises(TypeError, match=r"as_model was given an optimizer.*Use as_optimizer") as e:
        as_model(optax.adam(0.1))
    assert not isinstance(e.value, AdapterError)
