"""The suite tells which clause an adapter breaks: planted wrong adapters, and what fails."""

import importlib
import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solstice.testing import ModelConformance, OptimizerConformance, Sgd


@jax.tree_util.register_static
@dataclass(eq=False)
class Toy:
    """Dense, batch norm, relu, dropout, dense: a right adapter, of which wrong ones are made."""

    hidden: int
    classes: int
    batch_norm: bool
    dropout: float

    def init(self, key, x, /):
        one, two = jax.random.split(key)
        size = x.shape[-1]
        params = {
            "w1": jax.random.normal(one, (size, self.hidden)) / size**0.5,
            "b1": jnp.zeros(self.hidden),
            "w2": jax.random.normal(two, (self.hidden, self.classes)) / self.hidden**0.5,
            "b2": jnp.zeros(self.classes),
        }
        if not self.batch_norm:
            return params, {}
        return params, {"mean": jnp.zeros(self.hidden), "var": jnp.ones(self.hidden)}

    def forward(self, params, state, x, /, *, train, key=None):
        h = x @ params["w1"] + params["b1"]
        if self.batch_norm:
            h, state = self.normalise(state, h, train)
        h = jax.nn.relu(h)
        if train and self.dropout:
            h = self.drop(h, key)
        return h @ params["w2"] + params["b2"], state

    def normalise(self, state, h, train):
        mean, var = (h.mean(0), h.var(0)) if train else (state["mean"], state["var"])
        if train:
            now = {"mean": mean, "var": var}
            state = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state, now)
        return (h - mean) / jnp.sqrt(var + 1e-5), state

    def drop(self, h, key):
        if key is None:
            raise ValueError("dropout needs a key")
        kept = jax.random.bernoulli(key, 1 - self.dropout, h.shape)
        return jnp.where(kept, h / (1 - self.dropout), 0).astype(h.dtype)


def static(cls):
    return jax.tree_util.register_static(dataclass(eq=False)(cls))


class NotStatic(Toy):
    pass


@static
class ImpureInit(Toy):
    calls = 0

    def init(self, key, x, /):
        self.calls += 1
        params, state = super().init(key, x)
        return {**params, "b1": params["b1"] + 0.1 * self.calls}, state


@static
class InitReadsValues(Toy):
    def init(self, key, x, /):
        params, state = super().init(key, x)
        return {**params, "b1": params["b1"] + float(np.asarray(x).std() > 0)}, state


@static
class IntegerParams(Toy):
    def init(self, key, x, /):
        params, state = super().init(key, x)
        return {**params, "count": jnp.zeros((), jnp.int32)}, state


@static
class KeyInState(Toy):
    def init(self, key, x, /):
        params, state = super().init(key, x)
        return params, {**state, "key": jax.random.key(0)}

    def normalise(self, state, h, train):
        statistics = {name: state[name] for name in ("mean", "var")}
        h, statistics = super().normalise(statistics, h, train)
        return h, {**state, **statistics}


@static
class DriftingState(Toy):
    """A count that is an integer to begin with, and a float after a step."""

    def init(self, key, x, /):
        params, state = super().init(key, x)
        return params, {**state, "steps": jnp.zeros((), jnp.int32)}

    def forward(self, params, state, x, /, *, train, key=None):
        rest = {name: value for name, value in state.items() if name != "steps"}
        out, rest = super().forward(params, rest, x, train=train, key=key)
        return out, ({**rest, "steps": state["steps"] + 1.0} if train else state)


@static
class SqueezesOne(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        return (jnp.squeeze(out, 0) if len(out) == 1 else out), state


@static
class MutatesState(Toy):
    def init(self, key, x, /):
        params, state = super().init(key, x)
        return params, {**state, "seen": np.zeros((), np.float32)}

    def forward(self, params, state, x, /, *, train, key=None):
        rest = {name: value for name, value in state.items() if name != "seen"}
        if isinstance(state["seen"], np.ndarray):
            state["seen"] += 1
        out, rest = super().forward(params, rest, x, train=train, key=key)
        return out, ({**rest, "seen": state["seen"]} if train else state)


@static
class Remembers(Toy):
    """Adds what it saw last."""

    last = 0.0

    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        if isinstance(x, jax.core.Tracer):
            return out, state
        bias = self.last * jnp.sum(jnp.abs(params["b2"]) + jnp.abs(params["w2"]))
        self.last = self.last or 0.0
        self.last = float(np.abs(np.asarray(x)).max() > 4) if np.ndim(x) else 0.0
        return out + bias.astype(out.dtype), state


@static
class OwnParams(Toy):
    """Uses the bias that it made itself."""

    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        return out + jnp.asarray(0.1, out.dtype), state


@static
class EvaluationWantsAKey(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        if key is None and not self.dropout and not self.batch_norm:
            raise ValueError("a key, please")
        return super().forward(params, state, x, train=train, key=key)


@static
class EvaluationMovesState(Toy):
    def init(self, key, x, /):
        params, state = super().init(key, x)
        return params, {**state, "steps": jnp.zeros((), jnp.int32)}

    def forward(self, params, state, x, /, *, train, key=None):
        rest = {name: value for name, value in state.items() if name != "steps"}
        out, rest = super().forward(params, rest, x, train=train, key=key)
        moved = 0 if self.batch_norm and not train else 1
        return out, {**rest, "steps": state["steps"] + moved}


@static
class RowsSeeEachOther(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        plain = not (train or self.batch_norm or self.dropout)
        return (out - out.mean(0) if plain else out), state


@static
class BranchesOnValues(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        return (out if train is False or float(out.sum()) < 1e9 else -out), state


@static
class CannotLearn(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        return super().forward(jax.lax.stop_gradient(params), state, x, train=train, key=key)


@static
class Promotes(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        return out.astype(jnp.float32), state


@static
class OldKeysOnly(Toy):
    def init(self, key, x, /):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise TypeError("uint32[2], please")
        return super().init(key, x)


@static
class OneMask(Toy):
    def drop(self, h, key):
        return h * super().drop(jnp.ones_like(h[:1]), key)


@static
class FixedMask(Toy):
    def drop(self, h, key):
        super().drop(h, key)
        return super().drop(h, jax.random.PRNGKey(0))


@static
class MaskWithoutKey(Toy):
    def drop(self, h, key):
        return super().drop(h, jax.random.PRNGKey(0) if key is None else key)


@static
class DropsAlways(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        if not train and self.dropout:
            out, _ = super().forward(params, state, x, train=True, key=jax.random.PRNGKey(0))
            return out, state
        return super().forward(params, state, x, train=train, key=key)


@static
class LosesStatistics(Toy):
    def normalise(self, state, h, train):
        h, _ = super().normalise(state, h, train)
        return h, state


@static
class IgnoresStatistics(Toy):
    def normalise(self, state, h, train):
        start = {"mean": jnp.zeros_like(state["mean"]), "var": jnp.ones_like(state["var"])}
        h, moved = super().normalise(state if train else start, h, train)
        return h, moved if train else state


@static
class TrainsOnStatistics(Toy):
    def normalise(self, state, h, train):
        _, moved = super().normalise(state, h, train)
        h, _ = super().normalise(state, h, train=False)
        return h, moved


@static
class Unfound(Toy):
    forward = None


def on_the_first_device(tree):
    """With a sharding that says so, which is another type to JAX than one that says nothing."""
    first = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
    here = jax.sharding.NamedSharding(first, jax.sharding.PartitionSpec())
    return jax.lax.with_sharding_constraint(tree, here)


@static
class MovesInTraining(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        return (on_the_first_device(out) if train else out), state


_OBJECTS = itertools.count()


def number_of_its_own():
    """A number in [1, 2) that no other object has, as a hidden seed would be."""
    return 1 + next(_OBJECTS) % 1009 / 1009


@static
class DiffersByObject(Toy):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.number = number_of_its_own()

    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        return self.number * out, state


@jax.custom_batching.custom_vmap
def never_mapped(x):
    return x


@never_mapped.def_vmap
def _refuse(axis_size, in_batched, x):
    raise NotImplementedError


@static
class CannotBeMapped(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        bias = params["b2"]
        params = {**params, "b2": bias + 0 * never_mapped(jax.lax.stop_gradient(bias))}
        return super().forward(params, state, x, train=train, key=key)


@static
class OneDevice(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        batch_alone = isinstance(x, jax.core.Tracer) and not isinstance(key, jax.core.Tracer)
        return (on_the_first_device(out) if batch_alone and train else out), state


@static
class ForgetsState(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        return super().forward(params, state, x, train=train, key=key)[0]


@static
class HalfOutputs(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        return (out.astype(jnp.float16) if out.dtype == jnp.float32 else out), state


@static
class DoubleConstants(Toy):
    """A constant without a dtype, which is float64 with `jax_enable_x64`."""

    def drop(self, h, key):
        return super().drop(h, key) + (jnp.zeros(()) if h.dtype == jnp.float32 else 0)


@static
class CountsItself(Toy):
    """Its repr is another for each object, as one of a framework that numbers its layers."""

    built = 0

    def __post_init__(self):
        type(self).built += 1
        self.name = f"net_{self.built}"

    def __repr__(self):
        return self.name


@static
class OneDeviceInTraining(Toy):
    """On a device of its own for the small last batch of a run."""

    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        return (on_the_first_device(out) if train and len(x) == 5 else out), state


MODELS = {
    OneDeviceInTraining: {"test_steps_give_the_same_on_a_mesh"},
    ForgetsState: {"test_calls_give_pairs"},
    HalfOutputs: {"test_it_keeps_single_precision"},
    DoubleConstants: {"test_it_makes_no_double_precision"},
    CountsItself: {"test_a_checkpoint_loads_into_another_object"},
    Unfound: {"test_it_is_found_and_is_a_model"},
    MovesInTraining: {"test_a_second_step_compiles_nothing"},
    DiffersByObject: {"test_values_come_back_from_a_checkpoint"},
    CannotBeMapped: {"test_it_maps_over_seeds"},
    OneDevice: {"test_it_works_sharded"},
    NotStatic: {"test_it_is_static"},
    ImpureInit: {"test_init_is_pure"},
    InitReadsValues: {"test_init_needs_shapes_alone"},
    IntegerParams: {"test_params_are_inexact"},
    KeyInState: {"test_state_is_arrays"},
    DriftingState: {"test_state_keeps_its_types"},
    SqueezesOne: {"test_outputs_have_the_batch_axis"},
    MutatesState: {"test_inputs_are_left_alone"},
    Remembers: {"test_forward_is_pure"},
    OwnParams: {"test_params_are_used"},
    EvaluationWantsAKey: {"test_evaluation_needs_no_key"},
    EvaluationMovesState: {"test_evaluation_gives_the_state_back"},
    RowsSeeEachOther: {"test_rows_do_not_see_each_other"},
    BranchesOnValues: {"test_a_step_works_compiled"},
    CannotLearn: {"test_it_learns"},
    Promotes: {"test_it_keeps_half_precision"},
    OldKeysOnly: {"test_it_takes_any_key"},
    OneMask: {"test_dropout_differs_between_rows"},
    FixedMask: {"test_dropout_follows_its_key"},
    MaskWithoutKey: {"test_dropout_needs_a_key"},
    DropsAlways: {"test_dropout_sleeps_in_evaluation"},
    LosesStatistics: {"test_statistics_move_in_training"},
    IgnoresStatistics: {"test_statistics_are_used_in_evaluation"},
    TrainsOnStatistics: {"test_training_uses_the_batch"},
}


@static
class Right(Sgd):
    """As a third party would write it."""


class NotStaticSgd(Sgd):
    pass


@static
class ImpureSteps(Sgd):
    steps = 0

    def step(self, grads, state, params, /, **extra):
        self.steps += not isinstance(jax.tree.leaves(params)[0], jax.core.Tracer)
        new, state = super().step(grads, state, params)
        return jax.tree.map(lambda n, g: n - 1e-3 * self.steps * g, new, grads), state


@static
class ImpureStart(Sgd):
    """Begins with what it ended with last."""

    calls = 0

    def init(self, params, /):
        self.calls += 1
        return jax.tree.map(lambda p: jnp.zeros_like(p) + 1e-3 * (self.calls > 1), params)


@static
class StartReadsValues(Sgd):
    def init(self, params, /):
        float(jax.tree.leaves(params)[0].sum())
        return super().init(params)


@static
class KeyInOptState(Sgd):
    def init(self, params, /):
        return super().init(params), jax.random.key(0)

    def step(self, grads, state, params, /, **extra):
        new, velocity = super().step(grads, state[0], params)
        return new, (velocity, state[1])


@static
class DriftingSgd(Sgd):
    def init(self, params, /):
        return super().init(params), jnp.zeros((), jnp.int32)

    def step(self, grads, state, params, /, **extra):
        new, velocity = super().step(grads, state[0], params)
        return new, (velocity, state[1] + 1.0)


@static
class Decays(Sgd):
    def step(self, grads, state, params, /, **extra):
        new, state = super().step(grads, state, params)
        return jax.tree.map(lambda n: (0.999 * n).astype(n.dtype), new), state


@static
class GoesNowhere(Sgd):
    def step(self, grads, state, params, /, **extra):
        _, state = super().step(grads, state, params)
        return jax.tree.map(lambda p: p + 0, params), state


@static
class RefusesExtras(Sgd):
    def step(self, grads, state, params, /, *, value=None, value_fn=None):
        return super().step(grads, state, params)


@static
class HalfForEvaluation(Sgd):
    def eval_params(self, state, params, /):
        return jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)


@static
class BranchesOnLoss(Sgd):
    def step(self, grads, state, params, /, *, value=None, value_fn=None, **extra):
        if value is not None and value_fn is not None and len(jax.tree.leaves(params)) == 3:
            assert float(value) >= 0
        return super().step(grads, state, params)


@static
class PromotesHalf(Sgd):
    def step(self, grads, state, params, /, **extra):
        new, state = super().step(grads, state, params)
        return jax.tree.map(lambda n: n.astype(jnp.float32), new), state


@static
class Gathers(Sgd):
    """Brings all to one device."""

    def step(self, grads, state, params, /, **extra):
        new, state = super().step(grads, state, params)
        if "w" in params:
            mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",))
            whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            new = jax.lax.with_sharding_constraint(new, whole)
        return new, state


@static
class OneDeviceOnly(Sgd):
    def step(self, grads, state, params, /, **extra):
        new, state = super().step(grads, state, params)
        return (on_the_first_device(new) if "kernel" in params else new), state


@static
class UnfoundSgd(Sgd):
    step = None


@static
class MovesEachUpdate(Sgd):
    def step(self, grads, state, params, /, **extra):
        new, state = super().step(grads, state, params)
        return (new if "w" in params else on_the_first_device(new)), state


@static
class CannotMapOverParams(Sgd):
    def step(self, grads, state, params, /, **extra):
        new, state = super().step(grads, state, params)
        return jax.tree.map(never_mapped, new), state


@static
class ThreeLeavesOnly(Sgd):
    def step(self, grads, state, params, /, **extra):
        new, state = super().step(grads, state, params)
        return (new if len(jax.tree.leaves(params)) == 3 else params), state


@static
class NeedsValue(Sgd):
    def step(self, grads, state, params, /, *, value=None, value_fn=None, **extra):
        if value is None:
            raise TypeError("step needs the loss: give it `value`")
        return super().step(grads, state, params)


@static
class DoubleRate(Sgd):
    """A rate that is an array without a dtype, float64 with `jax_enable_x64`."""

    def step(self, grads, state, params, /, **extra):
        new, state = super().step(grads, state, params)
        if jax.tree.leaves(params)[0].dtype == jnp.float32:
            new = jax.tree.map(lambda p: p * jnp.ones(()), new)
        return new, state


@static
class CountsItselfToo(Sgd):
    built = 0

    def __post_init__(self):
        type(self).built += 1
        self.name = f"sgd_{self.built}"

    def __repr__(self):
        return self.name


OPTIMIZERS = {
    NeedsValue: {"test_a_step_needs_no_value"},
    DoubleRate: {"test_it_makes_no_double_precision"},
    CountsItselfToo: {"test_a_checkpoint_loads_into_another_object"},
    UnfoundSgd: {"test_it_is_found_and_is_an_optimizer"},
    MovesEachUpdate: {"test_a_second_step_compiles_nothing"},
    CannotMapOverParams: {"test_it_maps_over_params"},
    ThreeLeavesOnly: {"test_it_trains"},
    NotStaticSgd: {"test_it_is_static"},
    ImpureSteps: {"test_a_step_is_pure"},
    ImpureStart: {"test_init_is_pure"},
    StartReadsValues: {"test_init_needs_shapes_alone"},
    KeyInOptState: {"test_state_is_arrays"},
    DriftingSgd: {"test_a_step_keeps_types"},
    Decays: {"test_a_step_gives_params"},
    GoesNowhere: {"test_a_step_goes_down"},
    RefusesExtras: {"test_extras_are_taken"},
    HalfForEvaluation: {"test_eval_params_are_params"},
    BranchesOnLoss: {"test_a_step_works_compiled"},
    PromotesHalf: {"test_it_keeps_half_precision"},
    Gathers: {"test_it_works_sharded"},
    OneDeviceOnly: {"test_steps_give_the_same_on_a_mesh"},
}


@static
class Armijo(Sgd):
    """Halves its step until the loss goes down enough, as a line search of a third party would."""

    def init(self, params, /):
        return {"rate": jnp.asarray(1.0), "searched": jnp.zeros((), jnp.int32)}

    def step(self, grads, state, params, /, *, value, value_fn, **extra):
        slope = sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads))

        def at(rate):
            return jax.tree.map(lambda p, g: p - rate.astype(p.dtype) * g, params, grads)

        def too_high(rate):
            return (value_fn(at(rate)) > value - 1e-4 * rate * slope) & (rate > 1e-6)

        rate = jax.lax.while_loop(too_high, lambda rate: rate / 2, jnp.ones_like(state["rate"]))
        return at(rate), {"rate": rate, "searched": state["searched"] + 1}


@pytest.fixture(autouse=True)
def standard_promotion():
    """As in the suite itself, when pytest runs it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def suite_of(adapter: Any) -> Any:
    if issubclass(adapter, Toy):

        class Suite(ModelConformance):
            def build(self, *, hidden, classes, batch_norm, dropout):
                return adapter(hidden, classes, batch_norm, dropout)

    else:

        class Suite(OptimizerConformance):
            def build(self, *, learning_rate):
                return adapter(learning_rate)

    return Suite


def failing(suite: Any) -> dict[str, BaseException]:
    found = {}
    for name in [name for name in dir(suite) if name.startswith("test_")]:
        try:
            getattr(suite(), name)()
        except pytest.skip.Exception:
            pass
        except (Exception, pytest.fail.Exception) as error:
            found[name] = error
    return found


@pytest.mark.parametrize(
    ("suite", "mutants"), [(ModelConformance, MODELS), (OptimizerConformance, OPTIMIZERS)]
)
def test_every_check_has_an_adapter_that_fails_it_alone(suite: Any, mutants: Any):
    checks = {name for name in dir(suite) if name.startswith("test_")}
    in_a_process = {"test_a_checkpoint_loads_in_a_new_process"}  # its fault is planted below
    assert set().union(*mutants.values()) == checks - in_a_process
    assert all(len(failed) <= 1 for failed in mutants.values())


def test_a_right_adapter_passes_every_check():
    assert failing(suite_of(Toy)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", MODELS, ids=lambda adapter: adapter.__name__)
def test_a_wrong_model_fails_its_clause(adapter: Any):
    assert set(failing(suite_of(adapter))) == MODELS[adapter]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", OPTIMIZERS, ids=lambda adapter: adapter.__name__)
def test_a_wrong_optimizer_fails_its_clause(adapter: Any):
    assert set(failing(suite_of(adapter))) == OPTIMIZERS[adapter]


@pytest.mark.slow
def test_a_line_search_passes_and_declares_that_it_needs_the_loss():
    class Suite(OptimizerConformance):
        unsupported = {"test_a_step_needs_no_value": "it searches along a line"}

        def build(self, *, learning_rate):
            return Armijo(learning_rate)

    [(name, outcome)] = failing(Suite).items()
    assert name == "test_a_step_needs_no_value"
    assert isinstance(outcome, pytest.xfail.Exception)


@static
class DrawsAlways(Toy):
    """Noise in evaluation too, from a fixed key, as of a framework that asks for one."""

    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        noise = jax.random.normal(key if train else jax.random.PRNGKey(7), out.shape, out.dtype)
        return out + 0.1 * noise * jnp.max(params["w2"]), state


@static
class DrawsAnything(DrawsAlways):
    """In evaluation too, without a key."""

    def forward(self, params, state, x, /, *, train, key=None):
        key = key if train else jax.random.PRNGKey(np.random.default_rng().integers(2**31))
        return super(DrawsAlways, self).forward(params, state, x, train=True, key=key)[0], state


@pytest.mark.slow
def test_a_net_that_draws_in_evaluation_from_a_fixed_key_passes():
    assert failing(suite_of(DrawsAlways)) == {}


# What authors do, and the sentence that says it


@static
class ParamsForState(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        return super().forward(params, state, x, train=train, key=key)[0], params


@static
class AlwaysTrains(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        key = jax.random.PRNGKey(0) if key is None else key
        return super().forward(params, state, x, train=True, key=key)


@static
class NeverTrains(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        return super().forward(params, state, x, train=False, key=key)


@static
class TrainsBackwards(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        return super().forward(params, state, x, train=not train, key=key)


@static
class NormalisesByTheBatch(Toy):
    """In evaluation too, and gives the State back."""

    def normalise(self, state, h, train):
        h, moved = super().normalise(state, h, True)
        return h, moved if train else state


@static
class DropsInEvaluation(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        if train or not self.dropout:
            return super().forward(params, state, x, train=train, key=key)
        out, _ = super().forward(params, state, x, train=False)
        return self.drop(out, jax.random.PRNGKey(0) if key is None else key), state


@static
class DropsNothing(Toy):
    def drop(self, h, key):
        super().drop(h, key)
        return h


@static
class OwnGenerator(Toy):
    """A key of its own, which it splits at each call."""

    key = jax.random.PRNGKey(0)

    def drop(self, h, key):
        type(self).key, mine = jax.random.split(self.key)
        return super().drop(h, mine)


@static
class NumpyGenerator(Toy):
    rng = np.random.default_rng(0)

    def drop(self, h, key):
        super().drop(h, key)
        return h * (self.rng.random(h.shape) < 0.5).astype(h.dtype)


@static
class ChangesInputs(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        if isinstance(x, np.ndarray):
            x -= x.mean()
        return super().forward(params, state, x, train=train, key=key)


@static
class ChangesParams(Toy):
    def forward(self, params, state, x, /, *, train, key=None):
        out = super().forward(params, state, x, train=train, key=key)
        params["w1"] = params["w1"] * 0.99
        return out


@static
class UpdatesState(Toy):
    """`state.update(new)`: the same dict is changed and given back."""

    def normalise(self, state, h, train):
        h, moved = super().normalise(state, h, train)
        state.update(moved)
        return h, state


@static
class UpdatesStateAndCopies(UpdatesState):
    def normalise(self, state, h, train):
        h, state = super().normalise(state, h, train)
        return h, dict(state)


@static
class HalfStatistics(Toy):
    def normalise(self, state, h, train):
        h, moved = super().normalise(state, h, train)
        return h, jax.tree.map(lambda leaf: leaf.astype(jnp.float16), moved)


@static
class DoubleOutputs(Toy):
    """NumPy's float64, where nothing is traced."""

    def forward(self, params, state, x, /, *, train, key=None):
        out, state = super().forward(params, state, x, train=train, key=key)
        return (out if isinstance(out, jax.core.Tracer) else np.asarray(out, np.float64)), state


@static
class HalfParams(Toy):
    def init(self, key, x, /):
        params, state = super().init(key, x)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params), state


@static
class NumberInState(Toy):
    def init(self, key, x, /):
        params, state = super().init(key, x)
        return params, {**state, "momentum": 0.9}

    def normalise(self, state, h, train):
        h, moved = super().normalise({k: state[k] for k in ("mean", "var")}, h, train)
        return h, {**state, **moved}


@static
class RngForKey(Toy):
    def forward(self, params, state, x, /, *, train, rng=None):
        return super().forward(params, state, x, train=train, key=rng)


@static
class HostStatistics(Toy):
    """Reads values on the host wherever there are statistics."""

    def normalise(self, state, h, train):
        h, moved = super().normalise(state, h, train)
        return h, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), moved)


@static
class HostStatisticsInEvaluation(Toy):
    def normalise(self, state, h, train):
        if not train:
            state = jax.tree.map(np.asarray, state)
        return super().normalise(state, h, train)


@static
class CountedPaths(Toy):
    """Its layers are numbered by a count of all that there were."""

    built = 0

    def __post_init__(self):
        type(self).built += 1
        self.prefix = f"net_{self.built}/"

    def init(self, key, x, /):
        params, state = super().init(key, x)
        return {self.prefix + name: leaf for name, leaf in params.items()}, state

    def forward(self, params, state, x, /, *, train, key=None):
        params = {name.removeprefix(self.prefix): leaf for name, leaf in params.items()}
        return super().forward(params, state, x, train=train, key=key)


@static
class UpdatesForParams(Sgd):
    def step(self, grads, state, params, /, **extra):
        new, state = super().step(grads, state, params)
        return jax.tree.map(jnp.subtract, new, params), state


@static
class ChangesOptState(Sgd):
    def step(self, grads, state, params, /, **extra):
        new, moved = super().step(grads, state, params)
        state.update(moved)
        return new, state


@static
class HalfNewParams(Sgd):
    def step(self, grads, state, params, /, **extra):
        new, state = super().step(grads, state, params)
        return jax.tree.map(lambda p: p.astype(jnp.float16), new), state


@static
class StepForgetsState(Sgd):
    def step(self, grads, state, params, /, **extra):
        return super().step(grads, state, params)[0]


@static
class TakesLoss(Sgd):
    def step(self, grads, state, params, /, *, loss=None):
        return super().step(grads, state, params)


MISTAKES = [
    (ParamsForState, "test_state_keeps_its_types", "returns the Params in place of the State"),
    (
        AlwaysTrains,
        "test_evaluation_gives_the_state_back",
        "train=False. returned another, as in tr",
    ),
    (NeverTrains, "test_statistics_move_in_training", "train=True. returned the State that it"),
    (NeverTrains, "test_dropout_sleeps_in_evaluation", "train=True. drops nothing, as in evalua"),
    (TrainsBackwards, "test_evaluation_needs_no_key", "Does `train` reach the net"),
    (NormalisesByTheBatch, "test_statistics_are_used_in_evaluation", "uses the batch, as in train"),
    (TrainsOnStatistics, "test_training_uses_the_batch", "statistics of the State, as in eval"),
    (DropsInEvaluation, "test_dropout_sleeps_in_evaluation", "train=False. drops units, as in tr"),
    (DrawsAnything, "test_forward_is_pure", "train=False. returned two results"),
    (DropsNothing, "test_dropout_sleeps_in_evaluation", "train=True. drops nothing"),
    (FixedMask, "test_dropout_follows_its_key", "one key is used again and again"),
    (OneMask, "test_dropout_differs_between_rows", "draw a mask for each"),
    (OwnGenerator, "test_forward_is_pure", "draws from a generator of its own"),
    (NumpyGenerator, "test_forward_is_pure", "draws from a generator of its own"),
    (EvaluationWantsAKey, "test_evaluation_needs_no_key", "give it a fixed one"),
    (ChangesInputs, "test_inputs_are_left_alone", "changed `x` in place"),
    (ChangesParams, "test_inputs_are_left_alone", r"changed `params` in place.*'w1'"),
    (UpdatesState, "test_inputs_are_left_alone", r"changed `state` in place.*'mean'"),
    (UpdatesStateAndCopies, "test_inputs_are_left_alone", "changed `state` in place"),
    (HalfOutputs, "test_it_keeps_single_precision", "float32 .* makes outputs of float16"),
    (DoubleOutputs, "test_it_keeps_single_precision", "makes outputs of float64"),
    (HalfParams, "test_it_keeps_single_precision", "init makes Params of float16"),
    (HalfStatistics, "test_state_keeps_its_types", "'mean'.* was float32.* and is float16"),
    (NumberInState, "test_state_is_arrays", r"'momentum'.* is not an array but 0.9 \(float\)"),
    (RngForKey, "test_it_is_found_and_is_a_model", "key=key.*its signature is .*rng"),
    (ForgetsState, "test_calls_give_pairs", "return the pair `outputs, state`"),
    (HostStatistics, "test_a_step_works_compiled", "forward reads values on the host"),
    (HostStatisticsInEvaluation, "test_a_step_works_compiled", "reads values on the host"),
    (LosesStatistics, "test_statistics_move_in_training", "lost, or kept in the adapter"),
    (CountsItself, "test_a_checkpoint_loads_into_another_object", "repr of an adapter"),
    (CountedPaths, "test_a_checkpoint_loads_into_another_object", "net_.* not there"),
    (UpdatesForParams, "test_a_step_gives_params", "updates in place of params"),
    (ChangesOptState, "test_a_step_is_pure", "a step .* changed `state` in place"),
    (HalfNewParams, "test_a_step_keeps_types", "was float32.* and is float16"),
    (
        StepForgetsState,
        "test_a_step_keeps_types",
        "return the pair `params, state`; it returned dict",
    ),
    (TakesLoss, "test_it_is_found_and_is_an_optimizer", "value=value.*unexpected keyword"),
    (BranchesOnLoss, "test_a_step_works_compiled", "step reads values on the host"),
]


@pytest.mark.parametrize(
    ("adapter", "check", "words"), MISTAKES, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_mistake_is_named(adapter: Any, check: str, words: str):
    with pytest.raises(AssertionError, match=f"(?s){words}"):
        getattr(suite_of(adapter)(), check)()


# The suite itself


def test_a_check_cannot_be_overridden():
    with pytest.raises(TypeError, match=r"overrides the check test_it_learns.*unsupported"):

        class Suite(ModelConformance):
            def test_it_learns(self):
                pass


def test_a_mixin_cannot_override_a_check():
    class Easy:
        def test_it_learns(self):
            pass

    with pytest.raises(TypeError, match="overrides the check test_it_learns"):

        class Suite(Easy, ModelConformance):
            pass


def test_a_suite_may_derive_from_one_and_lack_less():
    class Without(ModelConformance):
        unsupported = {"dropout": "not yet"}

        def build(self, *, hidden, classes, batch_norm, dropout):
            return Toy(hidden, classes, batch_norm, dropout)

    class With(Without):
        unsupported = {}

    with pytest.raises(pytest.fail.Exception, match="but works"):
        Without().test_dropout_needs_a_key()
    With().test_dropout_needs_a_key()


def test_a_basic_check_cannot_be_declared_lacking():
    with pytest.raises(
        TypeError, match=r"'test_it_learns', which every adapter must pass.*dropout"
    ):

        class Suite(ModelConformance):
            unsupported = {"test_it_learns": "it is too hard"}


def test_a_lack_has_a_reason():
    with pytest.raises(TypeError, match="must say why"):

        class Suite(ModelConformance):
            unsupported = {"dropout": ""}


@pytest.mark.slow
def test_a_lack_that_works_fails():
    class Suite(ModelConformance):
        unsupported = {"batch_norm": "so I thought", "test_it_maps_over_seeds": "so I thought"}

        def build(self, *, hidden, classes, batch_norm, dropout):
            return Toy(hidden, classes, batch_norm, dropout)

    found = failing(Suite)
    assert set(found) == {
        "test_it_maps_over_seeds",
        "test_statistics_move_in_training",
        "test_statistics_are_used_in_evaluation",
        "test_training_uses_the_batch",
    }
    assert "but works: remove it" in str(found["test_it_maps_over_seeds"])


PACKAGE = """
import jax
from dataclasses import dataclass

from solstice.testing import OptimizerConformance, Sgd


@jax.tree_util.register_static
@dataclass(eq=False, repr=False)
class Named(Sgd):
    def __repr__(self):
        return f"Named({set('abcdefgh')})"  # in an order that each process chooses


class TestRight(OptimizerConformance):
    def build(self, *, learning_rate):
        return Sgd(learning_rate)


class TestNamed(OptimizerConformance):
    def build(self, *, learning_rate):
        return Named(learning_rate)
"""


@pytest.mark.slow
def test_what_another_process_calls_otherwise_is_named(tmp_path: Any, monkeypatch: Any):
    (tmp_path / "hashed_suites.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    suites: Any = importlib.import_module("hashed_suites")
    suites.TestRight().test_a_checkpoint_loads_in_a_new_process()
    suites.TestNamed().test_a_checkpoint_loads_into_another_object()
    with pytest.raises(AssertionError, match="is built again in another process"):
        suites.TestNamed().test_a_checkpoint_loads_in_a_new_process()


def test_a_suite_that_another_process_cannot_import_skips_it():
    with pytest.raises(pytest.skip.Exception, match="put it in a module"):
        suite_of(Right)().test_a_checkpoint_loads_in_a_new_process()


def test_a_lack_that_names_nothing_is_called_unknown():
    with pytest.raises(TypeError, match=r"'dropuot', which is not a check.*dropout"):

        class Suite(ModelConformance):
            unsupported = {"dropuot": "a slip"}


def test_an_optional_check_that_fails_says_how_it_is_declared():
    with pytest.raises(AssertionError) as caught:
        suite_of(Promotes)().test_it_keeps_half_precision()
    assert any(
        'unsupported = {"test_it_keeps_half_precision"' in note for note in caught.value.__notes__
    )
    with pytest.raises(AssertionError) as caught:
        suite_of(OneMask)().test_dropout_differs_between_rows()
    assert any('unsupported = {"dropout"' in note for note in caught.value.__notes__)


def test_a_failure_names_the_net_that_was_ordered():
    with pytest.raises(AssertionError) as caught:
        suite_of(UpdatesState)().test_inputs_are_left_alone()
    assert "The arguments of `build`: batch_norm=True, dropout=0.5" in caught.value.__notes__
