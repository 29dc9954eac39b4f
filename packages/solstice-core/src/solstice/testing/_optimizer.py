"""The suite for optimisers."""

# Trees of anything go through here: what a checker can tell of them is not worth its words.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solstice import _tree
from solstice.compat import Optimizer, as_optimizer
from solstice.testing._parts import Linear, train
from solstice.testing._suite import (
    Conformance,
    all_arrays,
    equal,
    is_static,
    optional,
    rests_on,
    same_types,
    snapshot,
    through_numpy,
    two_devices,
)

TARGET = {
    "a": np.array([[1, -2, 3], [0, 1, 0]], np.float32),
    "b": (np.array([4], np.float32), np.array(-1, np.float32)),
}


def _loss(params: Any) -> Any:
    parts = _tree.map(lambda p, t: jnp.sum(jnp.square(p - t.astype(p.dtype))), params, TARGET)
    return sum(_tree.leaves(parts))


def _params(dtype: Any = jnp.float32) -> Any:
    return _tree.map(lambda t: jnp.zeros(t.shape, dtype), TARGET)


class OptimizerConformance(Conformance):
    """`class TestToyopt(OptimizerConformance)`: everything that an `Optimizer` must do.

    Write `build`, and declare in `lacks` the optional checks that the library cannot pass.
    """

    @abstractmethod
    def build(self, *, learning_rate: float) -> Any:
        """Gradient descent or a relative of it: an object of the library, or the adapter itself.

        Args:
            learning_rate: the size of a step; with 0.1, gradient descent converges here.
        """

    def _found(self) -> Optimizer:
        return as_optimizer(self.build(learning_rate=0.1))

    def _ready(self) -> tuple[Optimizer, Any, Any]:
        self.need("test_it_is_found_and_is_an_optimizer")
        optimizer, params = self._found(), _params()
        return optimizer, params, optimizer.init(params)

    # Basic: what every adapter must do

    def test_it_is_found_and_is_an_optimizer(self) -> None:
        """`as_optimizer` finds the adapter, which has `init`, `step` and `eval_params`."""
        assert isinstance(self._found(), Optimizer), "protocol: `as_optimizer` gives an Optimizer"

    def test_it_is_static(self) -> None:
        """An adapter has no leaves and hashes, so that it may stand in any pytree."""
        is_static(self._ready()[0])

    def test_init_is_pure(self) -> None:
        """`init` gives the same state for the same Params, and leaves them alone."""
        optimizer, params, state = self._ready()
        before = snapshot(params)
        equal(snapshot(state), snapshot(optimizer.init(params)), "init is pure")
        equal(before, snapshot(params), "init leaves the params alone")

    def test_init_needs_shapes_alone(self) -> None:
        """`jax.eval_shape` of `init` tells what `init` gives."""
        optimizer, params, state = self._ready()
        same_types(_tree.eval_shape(optimizer.init, params), state, "init from shapes")

    def test_state_is_arrays(self) -> None:
        """Every leaf of the state is an array, and none is a PRNG key."""
        all_arrays(self._ready()[2], "state is arrays")

    def test_a_step_keeps_types(self) -> None:
        """A step gives back Params and state of the structure, shapes and dtypes it was given."""
        optimizer, params, state = self._ready()
        new, after = optimizer.step(jax.grad(_loss)(params), state, params)
        same_types(params, new, "params are stable")
        same_types(state, after, "state is stable")

    @rests_on("test_init_is_pure")
    def test_a_step_is_pure(self) -> None:
        """The same arguments give the same results, and are left alone."""
        optimizer, params, state = self._ready()
        grads = jax.grad(_loss)(params)
        before = snapshot((grads, state, params))
        first = snapshot(optimizer.step(grads, state, params))
        optimizer.step(_tree.map(lambda g: 2 * g, grads), state, params)
        equal(first, snapshot(optimizer.step(grads, state, params)), "a step is pure")
        equal(before, snapshot((grads, state, params)), "a step leaves its arguments alone")

    @rests_on("test_init_is_pure")
    def test_a_step_gives_params(self) -> None:
        """`step` gives new Params, not updates to add: where there is no slope, the same."""
        optimizer, params, _ = self._ready()
        params = _tree.map(lambda t: jnp.asarray(t) + 3, TARGET)
        zeros = _tree.map(jnp.zeros_like, params)
        new, _ = optimizer.step(zeros, optimizer.init(params), params)
        equal(params, new, "a step gives params", atol=1e-5)

    def test_a_step_goes_down(self) -> None:
        """Steps of a quadratic reach its minimum."""
        optimizer, params, state = self._ready()
        first = float(_loss(params))
        for _ in range(100):
            params, state = optimizer.step(jax.grad(_loss)(params), state, params)
        last = float(_loss(optimizer.eval_params(state, params)))
        assert last < first / 10, f"a step goes down: the loss was {first} and is {last}"

    @rests_on("test_a_step_keeps_types")
    def test_extras_are_taken(self) -> None:
        """`value`, `value_fn` and what else is given may be used, and break nothing."""
        optimizer, params, state = self._ready()
        value, grads = jax.value_and_grad(_loss)(params)
        new, after = optimizer.step(grads, state, params, value=value, value_fn=_loss)
        same_types((params, state), (new, after), "extras are taken")

    def test_eval_params_are_params(self) -> None:
        """`eval_params` gives Params, and changes nothing."""
        optimizer, params, state = self._ready()
        before = snapshot((state, params))
        same_types(params, optimizer.eval_params(state, params), "eval_params")
        equal(before, snapshot((state, params)), "eval_params leaves its arguments alone")

    @rests_on("test_a_step_is_pure", "test_a_step_keeps_types", "test_extras_are_taken")
    def test_a_step_works_compiled(self) -> None:
        """Under `jax.jit` and `jax.lax.scan`, steps do what they do alone."""
        optimizer, params, state = self._ready()

        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(_loss)(params)
            return optimizer.step(grads, state, params, value=value, value_fn=_loss), value

        scanned, _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=3))((params, state))
        alone = params, state
        for _ in range(3):
            alone, _ = step(alone, None)
        equal(alone, scanned, "compiled steps equal plain ones", atol=1e-4)

    @rests_on("test_a_step_keeps_types")
    def test_a_second_step_compiles_nothing(self) -> None:
        """What a step gives back is of the same types as what it took, so it is traced once."""
        optimizer, params, state = self._ready()
        traced: list[None] = []

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            traced.append(None)
            return optimizer.step(jax.grad(_loss)(params), state, params)

        step(*step(params, state))
        assert len(traced) == 1, "one compilation: the second step was traced again"

    @rests_on("test_state_is_arrays", "test_a_step_is_pure", "test_a_step_keeps_types")
    def test_values_come_back_from_a_checkpoint(self) -> None:
        """A state that was saved by path and read back goes on as the one that was not."""
        optimizer, params, state = self._ready()
        params, state = optimizer.step(jax.grad(_loss)(params), state, params)
        again, grads = through_numpy(state), jax.grad(_loss)(params)
        there = optimizer.step(grads, state, params)
        equal(there, optimizer.step(grads, again, params), "checkpoint", atol=1e-6)

    @rests_on("test_a_step_works_compiled", "test_a_step_goes_down", "test_init_needs_shapes_alone")
    def test_it_trains(self) -> None:
        """A `ClassificationExperiment` learns three clusters with it."""
        accuracy = train(Linear(), self._ready()[0])
        assert accuracy > 0.9, f"it trains: the accuracy is {accuracy:.2f} after 8 epochs"

    # Optional: declared by name in `lacks`

    @optional
    @rests_on("test_a_step_keeps_types")
    def test_it_keeps_half_precision(self) -> None:
        """bfloat16 Params stay bfloat16, and the state keeps its types."""
        optimizer, params = self._ready()[0], _params(jnp.bfloat16)
        state = optimizer.init(params)
        new, after = optimizer.step(jax.grad(_loss)(params), state, params)
        same_types((params, state), (new, after), "no promotion")

    @optional
    @rests_on("test_init_needs_shapes_alone", "test_a_step_is_pure")
    def test_it_maps_over_params(self) -> None:
        """`jax.vmap` over Params does what a loop does."""
        optimizer, params, _ = self._ready()
        many = _tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), params)

        def step(params: Any) -> Any:
            return optimizer.step(jax.grad(_loss)(params), optimizer.init(params), params)[0]

        mapped = jax.vmap(step)(many)
        for index in range(2):
            equal(step(_tree.row(many, index)), _tree.row(mapped, index), "vmap", atol=1e-5)

    @optional
    @rests_on("test_init_needs_shapes_alone", "test_a_step_is_pure")
    def test_it_works_sharded(self) -> None:
        """Params that are spread over two devices stay so, and get what they get on one."""
        sharding = two_devices()
        optimizer = self._ready()[0]
        params = {"w": jnp.arange(8.0)}
        grads = {"w": jnp.ones(8)}
        expected, _ = optimizer.step(grads, optimizer.init(params), params)
        params, grads = jax.device_put((params, grads), sharding)
        new, _ = jax.jit(lambda g, p: optimizer.step(g, optimizer.init(p), p))(grads, params)
        equal(expected, new, "sharded", atol=1e-6)
        kept = new["w"].sharding.is_equivalent_to(sharding, 1)
        assert kept, f"sharded: the params were spread by {sharding} and are by {new['w'].sharding}"
