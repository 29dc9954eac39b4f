"""The suite tells which clause an adapter breaks: planted wrong adapters, and what fails."""

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
        start = {"mean": jnp.zeros(self.hidden), "var": jnp.ones(self.hidden)}
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


class Twins:
    def __init__(self, one, other):
        self.one, self.other = one, other


jax.tree_util.register_pytree_with_keys(
    Twins,
    lambda node: ([(jax.tree_util.GetAttrKey("one"), x) for x in (node.one, node.other)], None),
    lambda _, children: Twins(*children),
)


@static
class OnePathForTwo(Toy):
    def init(self, key, x, /):
        params, state = super().init(key, x)
        return params, {**state, "twins": Twins(jnp.zeros(()), jnp.ones(()))}

    def normalise(self, state, h, train):
        statistics = {name: state[name] for name in ("mean", "var")}
        h, statistics = super().normalise(statistics, h, train)
        return h, {**state, **statistics}


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
        return (out if train else on_the_first_device(out)), state


MODELS = {
    Unfound: {"test_it_is_found_and_is_a_model"},
    MovesInTraining: {"test_a_second_step_compiles_nothing"},
    OnePathForTwo: {"test_values_come_back_from_a_checkpoint"},
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
    def step(self, grads, state, params, /):
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
class UnfoundSgd(Sgd):
    step = None


@static
class MovesEachUpdate(Sgd):
    def step(self, grads, state, params, /, **extra):
        new, state = super().step(grads, state, params)
        return (new if "w" in params else on_the_first_device(new)), state


@static
class OnePathForTwoStates(Sgd):
    def init(self, params, /):
        return super().init(params), Twins(jnp.zeros(()), jnp.ones(()))

    def step(self, grads, state, params, /, **extra):
        new, velocity = super().step(grads, state[0], params)
        return new, (velocity, state[1])


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


OPTIMIZERS = {
    Right: set(),
    UnfoundSgd: {"test_it_is_found_and_is_an_optimizer"},
    MovesEachUpdate: {"test_a_second_step_compiles_nothing"},
    OnePathForTwoStates: {"test_values_come_back_from_a_checkpoint"},
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
}


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
    checks = {name for name in vars(suite) if name.startswith("test_")}
    assert set().union(*mutants.values()) == checks
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


# The suite itself


def test_a_check_cannot_be_overridden():
    with pytest.raises(TypeError, match=r"overrides the check test_it_learns.*lacks"):

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
        lacks = {"dropout": "not yet"}

        def build(self, *, hidden, classes, batch_norm, dropout):
            return Toy(hidden, classes, batch_norm, dropout)

    class With(Without):
        lacks = {}

    with pytest.raises(pytest.fail.Exception, match="it works"):
        Without().test_dropout_needs_a_key()
    With().test_dropout_needs_a_key()


def test_a_basic_check_cannot_be_declared_lacking():
    with pytest.raises(TypeError, match=r"'test_it_learns', which every adapter must do.*dropout"):

        class Suite(ModelConformance):
            lacks = {"test_it_learns": "it is too hard"}


def test_a_lack_has_a_reason():
    with pytest.raises(TypeError, match="must say why"):

        class Suite(ModelConformance):
            lacks = {"dropout": ""}


def test_a_lack_that_works_fails():
    class Suite(ModelConformance):
        lacks = {"batch_norm": "so I thought", "test_it_maps_over_seeds": "so I thought"}

        def build(self, *, hidden, classes, batch_norm, dropout):
            return Toy(hidden, classes, batch_norm, dropout)

    found = failing(Suite)
    assert set(found) == {
        "test_it_maps_over_seeds",
        "test_statistics_move_in_training",
        "test_statistics_are_used_in_evaluation",
        "test_training_uses_the_batch",
    }
    assert "it works: take it out" in str(found["test_it_maps_over_seeds"])
