"""Checks of a model under transformations of JAX, in checkpoints and in training."""

# The trees here have leaves of any type, so pyright cannot check them.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._types import AnyArray
from solstice.compat import Params, State
from solstice.testing._assertions import (
    double_precision,
    equal,
    same_types,
    single_precision,
    through_a_checkpoint,
    traced,
    two_devices,
)
from solstice.testing._model_calls import ModelCalls
from solstice.testing._nets import KEY, Net, on_each_net, on_the_most
from solstice.testing._parts import Sgd, same_training, train
from solstice.testing._suite import optional, rests_on

_FEATURES = (
    "test_statistics_move_in_training",
    "test_statistics_are_used_in_evaluation",
    "test_training_uses_the_batch",
    "test_dropout_follows_its_key",
    "test_dropout_sleeps_in_evaluation",
)
"""The checks that must pass before a net with batch norm and dropout can be expected to learn."""


class ModelTransforms(ModelCalls, is_suite=True):
    """Checks of a model under JAX and Solstice, mostly of the net with all features."""

    @rests_on(
        "test_params_are_inexact",
        "test_state_keeps_its_types",
        "test_inputs_are_left_alone",
        "test_forward_is_pure",
        "test_evaluation_needs_no_key",
    )
    def test_a_step_works_compiled(self) -> None:
        """Steps give the same under `jax.jit`, `jax.value_and_grad` and `jax.lax.scan`."""
        for order in self.orders():
            steps = self._steps(order)
            with traced("forward"):
                found = steps.compiled(steps.net.params, steps.net.state)
            what = "compiled steps and an evaluation after them equal plain ones"
            equal(steps.plain(), found, what, atol=1e-4)

    @rests_on("test_a_step_works_compiled")
    def test_a_second_step_compiles_nothing(self) -> None:
        """The results of a step have the types of its arguments, so it is traced once."""
        for order in self.orders():
            steps = self._steps(order)
            params, state, _ = steps.compiled(steps.net.params, steps.net.state)
            steps.traces.clear()
            steps.compiled(params, state)
            assert not steps.traces, "one compilation: the second step was traced again"

    @rests_on("test_a_checkpoint_loads_into_another_object", "test_evaluation_needs_no_key")
    @on_the_most
    def test_values_come_back_from_a_checkpoint(self, net: Net) -> None:
        """Saved by path and loaded into another object, Params and State give equal outputs."""
        other = self.start(self.found(**self.most()))
        saved, like = (net.params, net.state), (other.params, other.state)
        params, state = through_a_checkpoint(saved, like)
        again = Net(other.model, params, state, net.x)
        equal(net.evaluate(), again.evaluate(), "checkpoint", atol=1e-6)

    @rests_on(
        "test_it_takes_any_key",
        "test_evaluation_needs_no_key",
        "test_evaluation_gives_the_state_back",
        "test_a_step_works_compiled",
    )
    def test_it_learns(self) -> None:
        """A `ClassificationExperiment` with the model learns three clusters."""
        self.need(*(name for name in _FEATURES if name not in self._declared))
        accuracy = train(self.found(**self.most(dropout=0.1)), Sgd())
        assert accuracy > 0.9, f"it learns: the accuracy is {accuracy:.2f} after 8 epochs"

    # Optional: declared by name in `unsupported`

    @optional
    @rests_on("test_a_step_works_compiled")
    @on_the_most
    def test_it_maps_over_seeds(self, net: Net) -> None:
        """`jax.vmap` of `forward` over Params equals a loop."""
        scaled = [_tree.map(lambda leaf, s=s: s * leaf, net.params) for s in (1, 2)]
        many = _tree.map(lambda *leaves: jnp.stack(leaves), *scaled)
        with traced("forward"):
            mapped = jax.vmap(lambda params: net.evaluate(params=params))(many)
        for index, params in enumerate(scaled):
            equal(net.evaluate(params=params), mapped[index], "vmap", atol=1e-5)

    @optional
    @rests_on("test_a_step_works_compiled")
    @on_each_net
    def test_it_keeps_half_precision(self, net: Net) -> None:
        """bfloat16 values and inputs give bfloat16 outputs, without silent promotion.

        A float32 State stays float32 in training with bfloat16 Params.
        """
        params, state, x = _tree.floats_as(
            jnp.bfloat16, (net.params, net.state, jnp.asarray(net.x))
        )
        evaluated, _ = _shapes(Net(net.model, params, state, x), False)
        trained, after = _shapes(Net(net.model, params, net.state, x), True)
        same_types(net.state, after, "no promotion: bfloat16 Params made another State")
        # In training, a BatchNorm may compute in the type of its statistics.
        for out in (evaluated,) if _tree.leaves(net.state) else (evaluated, trained):
            assert out.dtype == jnp.bfloat16, f"no promotion: forward made bfloat16 to {out.dtype}"

    @optional
    @rests_on("test_it_keeps_single_precision", "test_init_needs_shapes_alone")
    @rests_on("test_a_step_works_compiled")
    @on_the_most
    def test_it_makes_no_double_precision(self, net: Net) -> None:
        """With `jax_enable_x64`, float32 Params, State and inputs give float32 results."""
        what = "no double precision: with jax_enable_x64, of float32 Params and inputs, forward"
        with double_precision():
            values = _tree.eval_shape(net.model.init, KEY, net.x)
            params, state = _tree.map(_single, values)
            net = Net(net.model, params, state, net.x)
            for mode in (True, False):
                out, after = _shapes(net, mode)
                single_precision(out, f"{what}(train={mode}) makes outputs of")
                single_precision(after, f"{what}(train={mode}) makes State of")

    @optional
    @rests_on("test_a_second_step_compiles_nothing")
    @on_the_most
    def test_it_works_sharded(self, net: Net) -> None:
        """A batch that is sharded over two devices gives the same as on one."""
        sharding = two_devices()

        def both(params: Params, state: State, x: AnyArray) -> tuple[tuple[Array, State], Array]:
            net_there = Net(net.model, params, state, x)
            return net_there.train(), net_there.evaluate()

        expected = both(net.params, net.state, net.x)
        replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        values = jax.device_put((net.params, net.state), replicated)
        found = jax.jit(both)(*values, jax.device_put(net.x, sharding))
        equal(expected, found, "sharded", atol=1e-5)

    @optional
    @rests_on("test_it_learns", "test_init_is_pure", "test_a_second_step_compiles_nothing")
    def test_steps_give_the_same_on_a_mesh(self) -> None:
        """A Trainer with `mesh="all"` has the losses of one device, with a split state too."""
        same_training(self.found(**self.most(dropout=0.1)), Sgd())

    def _steps(self, order: dict[str, Any]) -> "_Steps":
        """The steps for a net, compiled once for all checks."""
        return self._once(frozenset(order), lambda: _Steps(self.order(**order)))


@dataclass(eq=False)
class _Steps:
    """Three steps of hand-written gradient descent and an evaluation."""

    net: Net
    traces: list[None] = field(default_factory=list[None])

    @partial(jax.jit, static_argnums=0)
    def compiled(self, params: Params, state: State) -> tuple[Params, State, Array]:
        self.traces.append(None)
        (params, state), _ = jax.lax.scan(self._step, (params, state), self._inputs())
        return params, state, self._evaluated(params, state)

    def plain(self) -> tuple[Params, State, Array]:
        """The same computation without compilation."""
        params, state = self.net.params, self.net.state
        xs, keys = self._inputs()
        for x, key in zip(jnp.asarray(xs), keys, strict=True):
            (params, state), _ = self._step((params, state), (x, key))
        return params, state, self._evaluated(params, state)

    def _inputs(self) -> tuple[np.ndarray[Any, Any], Array]:
        return np.stack([self.net.x, 2 * self.net.x, -self.net.x]), jax.random.split(KEY, 3)

    def _evaluated(self, params: Params, state: State) -> Array:
        return self.net.evaluate(jnp.asarray(self.net.x), state=state, params=params)

    def _step(
        self, carry: tuple[Params, State], given: tuple[AnyArray, Array]
    ) -> tuple[tuple[Params, State], Array]:
        params, state = carry
        x, key = given

        def loss(params: Params) -> tuple[Array, State]:
            out, new = self.net.model.forward(params, state, x, train=True, key=key)
            return jnp.mean(jnp.square(out - 1)), new

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return (_tree.map(lambda p, g: p - 0.1 * g, params, grads), state), value


def _single(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape of a leaf, with floating-point dtypes replaced by float32."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, weak_type=leaf.weak_type)


def _shapes(net: Net, mode: bool) -> tuple[jax.ShapeDtypeStruct, State]:
    """The types of the results of `forward`, without computing it."""

    def forward(params: Params, state: State, x: Array) -> tuple[Array, State]:
        return net.model.forward(params, state, x, train=mode, key=KEY)

    return _tree.eval_shape(forward, net.params, net.state, net.x)
