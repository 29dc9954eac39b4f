"""OptimizerConformance: the conformance suite for optimiser adapters."""

# The trees here have leaves of any type, so pyright cannot check them.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from solstice import _tree
from solstice.compat import Optimizer, OptState, Params, as_optimizer
from solstice.testing._assertions import (
    all_arrays,
    double_precision,
    equal,
    is_pair,
    is_static,
    left_alone,
    same_types,
    snapshot,
    takes,
    traced,
    two_devices,
)
from solstice.testing._parts import Linear, same_training, train
from solstice.testing._rebuilt import Rebuilt
from solstice.testing._suite import optional, rests_on

TARGET = {
    "a": np.array([[1, -2, 3], [0, 1, 0]], np.float32),
    "b": (np.array([4], np.float32), np.array(-1, np.float32)),
}

_Loss: TypeAlias = Callable[[Params], Array]


def _loss(params: Params) -> Any:
    # In the dtype of the params, because float32 targets would promote bfloat16.
    parts = _tree.map(lambda p, t: jnp.sum(jnp.square(p - t.astype(p.dtype))), params, TARGET)
    return sum(_tree.leaves(parts))


def _params(dtype: DTypeLike = jnp.float32) -> Params:
    return _tree.map(lambda t: jnp.zeros(t.shape, dtype), TARGET)


def _step(
    optimizer: Optimizer, params: Params, state: OptState, loss: _Loss = _loss
) -> tuple[Params, OptState]:
    """A step as in the ready-made Experiments: with the loss and its function."""
    value, grads = jax.value_and_grad(loss)(params)
    return optimizer.step(grads, state, params, value=value, value_fn=loss)


def _start(optimizer: Optimizer, params: Params) -> OptState:
    """The first state without weak types, which the Trainer removes too.

    `jnp.asarray(0)` is weakly typed. After a step it may not be, and JAX would compile again.
    """

    def strong(leaf: Array) -> Array:
        is_weak = getattr(leaf, "weak_type", False)
        return jax.lax.convert_element_type(leaf, leaf.dtype) if is_weak else leaf

    return _tree.map(strong, optimizer.init(params))


class OptimizerConformance(Rebuilt, is_suite=True):
    """`class TestToyopt(OptimizerConformance)`: test all requirements of an `Optimizer`.

    Write `build`. Declare in `unsupported` the optional checks that the library cannot pass:
    "test_a_step_needs_no_value", "test_it_keeps_half_precision",
    "test_it_makes_no_double_precision", "test_it_maps_over_params", "test_it_works_sharded",
    "test_steps_give_the_same_on_a_mesh". All other checks pass the loss, `value` and `value_fn`, to
    each step.
    """

    _rests = ("test_init_needs_shapes_alone",)

    @abstractmethod
    def build(self, *, learning_rate: float) -> object:
        """Gradient descent or a variant: an object of the library, or the adapter itself.

        Args:
            learning_rate: the learning rate, 0.1; gradient descent converges with it here.
        """

    def _found(self) -> Optimizer:
        return as_optimizer(self.build(learning_rate=0.1))

    def _kept(self) -> dict[str, Any]:
        optimizer = self._found()
        return {"optimizer": optimizer, "state": _tree.eval_shape(optimizer.init, _params())}

    def _ready(self) -> tuple[Optimizer, Params, OptState]:
        self.need("test_it_is_found_and_is_an_optimizer")
        optimizer, params = self._found(), _params()
        return optimizer, params, _start(optimizer, params)

    # Basic: what every adapter must do

    def test_it_is_found_and_is_an_optimizer(self) -> None:
        """`as_optimizer` finds the adapter, and its methods accept their arguments."""
        optimizer = self._found()
        takes(optimizer.init, "init(params)", None)
        call = "step(grads, state, params, value=value, value_fn=value_fn)"
        takes(optimizer.step, call, None, None, None, value=None, value_fn=None)
        takes(optimizer.eval_params, "eval_params(state, params)", None, None)
        assert isinstance(optimizer, Optimizer), "protocol: `as_optimizer` must return an Optimizer"

    def test_it_is_static(self) -> None:
        """An adapter has no leaves and has a hash, so that it can be part of any pytree."""
        is_static(self._ready()[0])

    def test_init_is_pure(self) -> None:
        """`init` returns equal states for equal Params, and does not change them."""
        optimizer, params, state = self._ready()
        with left_alone("init", params=params):
            again = optimizer.init(params)
        equal(snapshot(state), snapshot(again), "init is pure: the same params gave another state")

    def test_init_needs_shapes_alone(self) -> None:
        """`jax.eval_shape` of `init` gives the types of its result."""
        optimizer, params, _ = self._ready()
        with traced("init"):
            shapes = _tree.eval_shape(optimizer.init, params)
        same_types(shapes, optimizer.init(params), "init from shapes")

    def test_state_is_arrays(self) -> None:
        """Every leaf of the state is an array other than a PRNG key."""
        all_arrays(self._ready()[2], "state is arrays")

    @rests_on("test_state_is_arrays")
    def test_a_step_keeps_types(self) -> None:
        """A step returns Params and state of the same structure, shapes and dtypes."""
        optimizer, params, state = self._ready()
        result = _step(optimizer, params, state)
        is_pair(result, "step(grads, state, params)", "params, state")
        same_types(params, result[0], "params are stable: step returns others")
        same_types(state, result[1], "state is stable: step returns another")

    @rests_on("test_init_is_pure", "test_a_step_keeps_types")
    def test_a_step_is_pure(self) -> None:
        """Equal arguments give equal results, and are not changed."""
        optimizer, params, state = self._ready()
        value, grads = jax.value_and_grad(_loss)(params)

        def step(grads: Params) -> tuple[Params, OptState]:
            return snapshot(optimizer.step(grads, state, params, value=value, value_fn=_loss))

        with left_alone("a step", grads=grads, state=state, params=params, value=value):
            first = step(grads)
            step(_tree.map(lambda g: 2 * g, grads))
            again = step(grads)
        equal(first, again, "a step is pure: the same arguments gave two results")

    @rests_on("test_init_is_pure", "test_a_step_keeps_types")
    def test_a_step_gives_params(self) -> None:
        """`step` returns new Params rather than updates: at the minimum, the same Params."""
        optimizer, _, _ = self._ready()
        params = _tree.map(jnp.asarray, TARGET)
        new, _ = _step(optimizer, params, _start(optimizer, params))
        what = (
            "a step gives params: at the minimum it returned others, or updates in place of params"
        )
        equal(params, new, what, atol=1e-5)

    @rests_on("test_a_step_keeps_types")
    def test_extras_are_taken(self) -> None:
        """A step accepts unknown keyword arguments."""
        optimizer, params, state = self._ready()
        value, grads = jax.value_and_grad(_loss)(params)
        extra = {"an_extra_of_another": jnp.zeros(())}
        try:
            new, after = optimizer.step(grads, state, params, value=value, value_fn=_loss, **extra)
        except TypeError as error:
            raise AssertionError(
                f"extras are taken: step(..., an_extra_of_another=0.0) raised {error!r}; take "
                f"`**extra`, and leave out what the optimiser does not use"
            ) from error
        same_types((params, state), (new, after), "extras are taken")

    def test_eval_params_are_params(self) -> None:
        """`eval_params` returns Params, and does not change its arguments."""
        optimizer, params, state = self._ready()
        with left_alone("eval_params", state=state, params=params):
            same_types(params, optimizer.eval_params(state, params), "eval_params")

    @rests_on("test_a_step_is_pure")
    def test_a_step_works_compiled(self) -> None:
        """Steps give the same under `jax.jit` and `jax.lax.scan`."""
        optimizer, params, state = self._ready()
        with traced("step"):
            scanned = self._steps().compiled(params, state)
        alone = params, state
        for _ in range(_Steps.COUNT):
            alone = _step(optimizer, *alone)
        equal(alone, scanned, "compiled steps equal plain ones", atol=1e-4)

    @rests_on("test_a_step_works_compiled")
    def test_a_step_goes_down(self) -> None:
        """Steps on a quadratic loss reduce it to less than a tenth."""
        optimizer, params, state = self._ready()
        first = float(_loss(params))
        for _ in range(100 // _Steps.COUNT):
            params, state = self._steps().compiled(params, state)
        last = float(_loss(optimizer.eval_params(state, params)))
        assert last < first / 10, f"a step goes down: the loss was {first} and is {last}"

    @rests_on("test_a_step_works_compiled")
    def test_a_second_step_compiles_nothing(self) -> None:
        """The results of a step have the types of its arguments, so it is traced once."""
        _, params, state = self._ready()
        steps = self._steps()
        params, state = steps.compiled(params, state)
        steps.traces.clear()
        steps.compiled(params, state)
        assert not steps.traces, "one compilation: the second step was traced again"

    @rests_on("test_a_step_works_compiled", "test_a_step_goes_down", "test_init_needs_shapes_alone")
    def test_it_trains(self) -> None:
        """A `ClassificationExperiment` with the optimiser learns three clusters."""
        accuracy = train(Linear(), self._ready()[0])
        assert accuracy > 0.9, f"it trains: the accuracy is {accuracy:.2f} after 8 epochs"

    # Optional: declared by name in `unsupported`

    @optional
    @rests_on("test_a_step_keeps_types")
    def test_a_step_needs_no_value(self) -> None:
        """A step works without the loss, as in hand-written loops."""
        optimizer, params, state = self._ready()
        try:
            new, after = optimizer.step(jax.grad(_loss)(params), state, params)
        except Exception as error:
            raise AssertionError(
                f"a step needs no value: step(grads, state, params), without the loss, raised "
                f"{error!r}"
            ) from error
        same_types((params, state), (new, after), "a step needs no value: it returns others")

    @optional
    @rests_on("test_a_step_works_compiled")
    def test_it_keeps_half_precision(self) -> None:
        """bfloat16 Params stay bfloat16, and the state keeps its types."""
        optimizer, params = self._ready()[0], _params(jnp.bfloat16)
        state = _start(optimizer, params)
        new, after = _tree.eval_shape(lambda p, s: _step(optimizer, p, s), params, state)
        same_types((params, state), (new, after), "no promotion")

    @optional
    @rests_on("test_a_step_works_compiled", "test_init_needs_shapes_alone")
    def test_it_makes_no_double_precision(self) -> None:
        """With `jax_enable_x64`, float32 Params stay float32, and the state keeps its types."""
        optimizer, params, _ = self._ready()
        with double_precision():
            state = _tree.eval_shape(lambda p: _start(optimizer, p), params)
            new, after = _tree.eval_shape(lambda p, s: _step(optimizer, p, s), params, state)
            what = "no double precision: with jax_enable_x64, step returns others"
            same_types((params, state), (new, after), what)

    @optional
    @rests_on("test_init_needs_shapes_alone", "test_a_step_works_compiled")
    def test_it_maps_over_params(self) -> None:
        """`jax.vmap` over Params equals a loop."""
        optimizer, params, _ = self._ready()
        many = _tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), params)

        def step(params: Params) -> Params:
            return _step(optimizer, params, _start(optimizer, params))[0]

        with traced("step"):
            mapped = jax.vmap(step)(many)
        for index in range(2):
            equal(step(_tree.row(many, index)), _tree.row(mapped, index), "vmap", atol=1e-5)

    @optional
    @rests_on("test_init_needs_shapes_alone", "test_a_second_step_compiles_nothing")
    def test_it_works_sharded(self) -> None:
        """Params that are sharded over two devices stay so, and get the same values as on one."""
        sharding = two_devices()
        optimizer = self._ready()[0]

        def step(params: Params) -> Params:
            return _step(optimizer, params, _start(optimizer, params), _sum_of_squares)[0]

        params = {"w": jnp.arange(8.0)}
        new = jax.jit(step)(jax.device_put(params, sharding))
        equal(step(params), new, "sharded", atol=1e-5)
        kept = new["w"].sharding.is_equivalent_to(sharding, 1)
        assert kept, f"sharded: the params were spread by {sharding} and are by {new['w'].sharding}"

    @optional
    @rests_on("test_it_trains", "test_a_second_step_compiles_nothing")
    def test_steps_give_the_same_on_a_mesh(self) -> None:
        """A Trainer with `mesh="all"` has the losses of one device, with a split state too."""
        same_training(Linear(), self._ready()[0])

    def _steps(self) -> "_Steps":
        """The steps of the optimiser, compiled once for all checks."""
        return self._once("steps", lambda: _Steps(self._found()))


@dataclass(eq=False)
class _Steps:
    """Steps of the optimiser in one compiled call."""

    COUNT = 2
    optimizer: Optimizer
    traces: list[None] = field(default_factory=list[None])

    @partial(jax.jit, static_argnums=0)
    def compiled(self, params: Params, state: OptState) -> tuple[Params, OptState]:
        self.traces.append(None)

        def step(carry: tuple[Params, OptState], _: object) -> tuple[tuple[Params, OptState], None]:
            return _step(self.optimizer, *carry), None

        return jax.lax.scan(step, (params, state), length=self.COUNT)[0]


def _sum_of_squares(params: Params) -> Array:
    return jnp.sum(jnp.square(params["w"]))
