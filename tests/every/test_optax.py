"""Every transformation that Optax exports, found by reflection, equals its use by hand."""

import functools
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from solstice_optax import OptaxOptimizer

pytestmark = [
    pytest.mark.slow,
    # Of Optax, about its own future.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Specifying a key will be required:UserWarning"),
]

STEPS = 30
PAGE = Path(__file__).parents[2] / "docs/howto/optimizers.md"

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype(np.float32)
Y = RNG.normal(size=(16, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes int32 counts into float32, and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def params():
    rng = np.random.default_rng(1)
    return {"w": jnp.asarray(rng.uniform(0.1, 1, (4, 3)), jnp.float32), "b": jnp.full(3, 0.5)}


def loss(params):
    return jnp.mean((X @ params["w"] + params["b"] - Y) ** 2)


def as_measure(updates, *_, **__):
    return optax.global_norm(updates)


# What a factory needs, by the name of its parameter: all that have no default must be here.
ARGUMENTS = {
    "learning_rate": 0.01,
    "l2_norm_clip": 1.0,
    "noise_multiplier": 0.1,
    "seed": 0,
    "key": 0,
    "eta": 0.1,
    "gamma": 0.5,
    "clipping": 0.1,
    "max_delta": 0.1,
    "threshold": 0.1,
    "max_norm": 0.1,
    "decay": 0.9,
    "step_size": -0.1,
    "step_size_fn": lambda count: -0.1 / (1 + count),
    "max_backtracking_steps": 5,
    "max_linesearch_steps": 5,
    "inner": optax.adam(0.01),
    "opt": optax.adam(0.01),
    "optimizer": optax.adam(0.01),
    "base_optimizer": optax.sgd(0.01),
    "fast_optimizer": optax.adam(0.01),
    "adv_optimizer": optax.sgd(0.01),
    "tx": optax.adam(0.01),
    "max_consecutive_errors": 3,
    "should_transform_fn": lambda step, **_: step % 2 == 0,
    "mask": {"w": True, "b": False},
    "freeze_mask": {"w": True, "b": False},
    "transforms": {"one": optax.adam(0.01), "two": optax.sgd(0.01)},
    "param_labels": {"w": "one", "b": "two"},
    "sync_period": 3,
    "slow_step_size": 0.5,
    "every_k_schedule": 2,
    "measure": as_measure,
    "measures": {"norm": as_measure},
    "measure_name": "norm",
    "f": lambda updates, params: jax.tree.map(jnp.negative, updates),
}
# Where a parameter of that name is something else, and what takes any number of parts.
MADE = {
    "chain": lambda: optax.chain(optax.clip(0.1), optax.adam(0.01)),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip(0.1)), ("sgd", optax.sgd(0.01))),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(optax.adam)(
        learning_rate=0.01
    ),
    # Muon itself gives it the axes of each matrix, and keeps vectors from it.
    "scale_by_muon": lambda: optax.masked(muon_of_matrices(), {"w": True, "b": False}),
    "stateless_with_tree_map": lambda: optax.stateless_with_tree_map(lambda g, p: -g),
}


def muon_of_matrices():
    def axes(params):
        return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(), params)

    takes_axes = "weight_dimension_numbers" in inspect.signature(contrib.scale_by_muon).parameters
    return contrib.scale_by_muon(**({"weight_dimension_numbers": axes} if takes_axes else {}))


LINE_SEARCH = ("value", "grad", "value_fn")
# The extra arguments that are passed by hand, as Optax's own documentation has it.
EXTRAS = {
    **dict.fromkeys(["polyak_sgd", "scale_by_polyak"], ("value",)),
    **dict.fromkeys(["momo", "momo_adam", "reduce_on_plateau"], ("value",)),
    "lbfgs": LINE_SEARCH,
    "scale_by_backtracking_linesearch": LINE_SEARCH,
    "scale_by_zoom_linesearch": LINE_SEARCH,
    "sophia": ("obj_fn",),
    "hutchinson_estimator_diag_hessian": ("obj_fn",),
}


def arguments_of(factory):
    parameters = inspect.signature(factory).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (2, 4)]
    return {name: ARGUMENTS[name] for name in needed}


def exported():
    """By name, as in `contrib.sam`: what gives a transformation, and how to make one."""
    found = {}
    for prefix, module in (("", optax), ("contrib.", contrib)):
        for name, factory in sorted(vars(module).items()):
            if callable(factory) and not name.startswith("_"):
                make = MADE.get(name) or functools.partial(made_of, factory)
                if gives_transformations(factory, make):
                    found[prefix + name] = make
    return found


def made_of(factory):
    return factory(**arguments_of(factory))


def gives_transformations(factory, make):
    try:
        if "GradientTransformation" in str(inspect.signature(factory).return_annotation):
            return True
        return isinstance(make(), optax.GradientTransformation | optax.MultiSteps)
    except Exception:  # not all that is callable can be called with these arguments
        return False


EXPORTED = exported()


def unusable():
    """By name, in which compositions the documentation says that it cannot be used."""
    row = r"^\| `optax\.([\w.]+)` \| (alone|in MultiSteps|both) \|"
    rows = re.findall(row, PAGE.read_text(), re.MULTILINE)
    listed = {}
    for name, where in rows:
        listed[name] = {"alone", "in MultiSteps"} if where == "both" else {where}
    return listed


UNUSABLE = unusable()


def scanned(step, start):
    return jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS)[0])(start)


def by_adapter(tx):
    """Params, state, and the params to evaluate with, after some steps of the adapter."""
    optimizer = OptaxOptimizer(tx)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        return optimizer.step(grads, state, params, value=value, value_fn=loss), None

    return scanned(step, (params(), optimizer.init(params())))


def by_hand(tx, extras):
    """Params and state after some steps that are written as Optax's documentation has them."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        every = {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss}
        given = {name: every[name] for name in extras}
        updates, state = tx.update(grads, state, params, **given)
        return (optax.apply_updates(params, updates), state), None

    return scanned(step, (params(), tx.init(params())))


def lookahead_by_hand(tx):
    def step(carry, _):
        pair, state = carry
        updates, state = tx.update(jax.grad(loss)(pair.fast), state, pair)
        return (optax.apply_updates(pair, updates), state), None

    pair = optax.LookaheadParams.init_synced(params())
    pair, state = scanned(step, (pair, tx.init(pair)))
    return pair.fast, (state, pair.slow)


def assert_same_bits(one, other):
    leaves, expected = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(leaves) == len(expected)
    for leaf, like in zip(leaves, expected, strict=True):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
        leaf, like = map(as_numpy, (leaf, like))
        np.testing.assert_array_equal(leaf, like)


def as_numpy(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


@pytest.mark.parametrize("where", ["alone", "in MultiSteps"])
@pytest.mark.parametrize("name", EXPORTED)
def test_thirty_steps_equal_a_loop_by_hand(name, where):
    def make():
        tx = EXPORTED[name]()
        return tx if where == "alone" else optax.MultiSteps(tx, every_k_schedule=2)

    if where in UNUSABLE.get(name, ()):
        with pytest.raises(Exception):  # noqa: B017, PT011, of Optax or of the adapter
            by_adapter(make())
        return
    one = by_adapter(make())
    if name == "lookahead":
        other = lookahead_by_hand(make())
    else:
        other = by_hand(make(), EXTRAS.get(name.removeprefix("contrib."), ()))
    assert_same_bits(one, other)


def test_the_list_has_no_other_row():
    """That each row is true, and that no other is due, the test above shows case by case."""
    assert len(EXPORTED) > 100
    assert PAGE.read_text().count("| `optax.") == len(UNUSABLE)
    assert [name for name in UNUSABLE if name not in EXPORTED and is_there(name)] == []


def is_there(name):
    return hasattr(contrib if name.startswith("contrib.") else optax, name.split(".")[-1])
