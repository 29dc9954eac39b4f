"""Checks of plain calls of a model's `init` and `forward`."""

# The trees here have leaves of any type, so pyright cannot check them.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solstice import _tree
from solstice.compat import Model
from solstice.testing._assertions import (
    all_arrays,
    equal,
    is_pair,
    is_static,
    left_alone,
    same_types,
    single_precision,
    snapshot,
    takes,
    traced,
)
from solstice.testing._nets import BATCH, CLASSES, KEY, Net, NetSuite, inputs, on_each_net
from solstice.testing._suite import rests_on


class ModelCalls(NetSuite, is_suite=True):
    """Basic checks, which every adapter must pass, without transformations of JAX."""

    def test_it_is_found_and_is_a_model(self) -> None:
        """`as_model` finds the adapter, and `init` and `forward` accept their arguments."""
        model: Any = self.found()
        takes(model.init, "init(key, x)", KEY, None)
        call = "forward(params, state, x, train=True, key=key)"
        takes(model.forward, call, None, None, None, train=True, key=KEY)
        assert isinstance(model, Model), "protocol: `as_model` must return a Model"

    @rests_on("test_it_is_found_and_is_a_model")
    def test_it_is_static(self) -> None:
        """An adapter has no leaves and has a hash, so that it can be part of any pytree."""
        is_static(self.found())

    @rests_on("test_it_is_found_and_is_a_model")
    def test_calls_give_pairs(self) -> None:
        """`init` returns Params and State, `forward` outputs and State."""
        for order in self.orders():
            model, x = self.found(**order), inputs()
            values = model.init(KEY, x)
            is_pair(values, "init(key, x)", "params, state")
            result = model.forward(*values, x, train=True, key=KEY)
            is_pair(result, "forward(params, state, x, train=True, key=key)", "outputs, state")

    @on_each_net
    def test_init_is_pure(self, net: Net) -> None:
        """Equal keys give equal values, whatever `init` was called with in between."""
        model, x = net.model, net.x
        with left_alone("init", x=x):
            first = snapshot(model.init(KEY, x))
            model.init(jax.random.PRNGKey(1), x)
            again = snapshot(model.init(KEY, x))
        equal(first, again, "init is pure: the same key gave other values")

    @rests_on("test_init_is_pure", "test_state_is_arrays")
    def test_init_needs_shapes_alone(self) -> None:
        """`jax.eval_shape` of `init` gives the types of its result, before and after a call."""
        for order in self.orders():
            model, x = self.found(**order), inputs()
            with traced("init"):
                shapes = _tree.eval_shape(model.init, KEY, x)
            values = model.init(KEY, x)
            same_types(shapes, values, "init from shapes")
            same_types(_tree.eval_shape(model.init, KEY, x), values, "init from shapes")

    @on_each_net
    def test_params_are_inexact(self, net: Net) -> None:
        """Every leaf of Params is an inexact array, so that `jax.grad` accepts them."""
        all_arrays(net.params, "params are inexact arrays")
        assert _tree.leaves(net.params), "params are inexact arrays: there are none"
        for path, leaf in _tree.leaves_by_path(net.params):
            inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
            assert inexact, f"params are inexact arrays: `{path}` is {leaf.dtype}"

    @on_each_net
    def test_state_is_arrays(self, net: Net) -> None:
        """Every leaf of State is an array other than a PRNG key."""
        all_arrays(net.state, "state is arrays")

    @rests_on("test_state_is_arrays")
    @on_each_net
    def test_inputs_are_left_alone(self, net: Net) -> None:
        """`forward` does not change Params, State or inputs in place."""
        for mode in (True, False):
            with left_alone(f"forward(train={mode})", params=net.params, state=net.state, x=net.x):
                net.model.forward(net.params, net.state, net.x, train=mode, key=KEY)

    @rests_on("test_inputs_are_left_alone")
    @on_each_net
    def test_state_keeps_its_types(self, net: Net) -> None:
        """Training returns a State of the same structure, shapes and dtypes."""
        _, after = net.train()
        what = "state is stable: forward(train=True) returns another"
        if _tree.structure(after) == _tree.structure(net.params):
            what = "state is stable: forward(train=True) returns the Params in place of the State"
        same_types(net.state, after, what)

    @on_each_net
    def test_outputs_have_the_batch_axis(self, net: Net) -> None:
        """Axis 0 of the outputs is the batch, in training and in evaluation."""
        for mode in (True, False):
            for size in (BATCH, 1):
                x = net.x[:size]
                out, _ = net.model.forward(net.params, net.state, x, train=mode, key=KEY)
                shape = getattr(out, "shape", None)
                assert shape == (size, CLASSES), f"outputs: expected {(size, CLASSES)}, got {shape}"

    @rests_on("test_params_are_inexact", "test_state_keeps_its_types")
    @on_each_net
    def test_it_keeps_single_precision(self, net: Net) -> None:
        """float32 inputs give float32 Params, outputs and statistics."""
        single_precision(net.params, "single precision: of float32 inputs, init makes Params of")
        for mode in (True, False):
            what = f"single precision: of float32 Params and inputs, forward(train={mode}) makes"
            out, after = net.model.forward(net.params, net.state, net.x, train=mode, key=KEY)
            single_precision(out, f"{what} outputs of")
            single_precision(after, f"{what} State of")

    @rests_on("test_inputs_are_left_alone")
    @on_each_net
    def test_forward_is_pure(self, net: Net) -> None:
        """Equal arguments give equal outputs, whatever was computed in between."""
        arguments = net.params, net.state
        for mode in (True, False):
            first = snapshot(net.model.forward(*arguments, net.x, train=mode, key=KEY))
            net.model.forward(*arguments, 2 * net.x, train=mode, key=jax.random.PRNGKey(3))
            second = snapshot(net.model.forward(*arguments, net.x, train=mode, key=KEY))
            what = (
                f"forward is pure: forward(train={mode}) returned two results for equal arguments, "
                f"the same key among them; it draws from a generator of its own, or remembers"
            )
            equal(first, second, what)

    def test_params_are_used(self) -> None:
        """The outputs depend on the given Params, not on values inside the model."""
        net = self.order()
        zeros = _tree.map(jnp.zeros_like, net.params)
        for mode in (True, False):
            out, _ = net.model.forward(zeros, net.state, net.x, train=mode, key=KEY)
            assert not np.any(np.asarray(out)), "forward uses the params that it is given"

    @rests_on("test_forward_is_pure")
    @on_each_net
    def test_evaluation_needs_no_key(self, net: Net) -> None:
        """`train=False` works without a key and is repeatable.

        If a net draws random numbers in evaluation, its adapter gives it a fixed key.
        """
        try:
            first = snapshot(net.evaluate())
        except Exception as error:
            raise AssertionError(
                f"evaluation needs no key: forward(train=False) without one raised "
                f"{type(error).__name__}: {error}. Does `train` reach the net? If the framework "
                f"asks for a key in evaluation, give it a fixed one"
            ) from error
        net.train(key=jax.random.PRNGKey(3))
        equal(first, snapshot(net.evaluate()), "evaluation is repeatable: without a key, it gave")

    @rests_on("test_forward_is_pure")
    @on_each_net
    def test_evaluation_gives_the_state_back(self, net: Net) -> None:
        """`train=False` returns the given State."""
        _, after = net.model.forward(net.params, net.state, net.x, train=False, key=KEY)
        what = "evaluation keeps the state: forward(train=False) returned another, as in training"
        equal(net.state, after, what)

    @rests_on("test_outputs_have_the_batch_axis", "test_evaluation_needs_no_key")
    def test_rows_do_not_see_each_other(self) -> None:
        """In evaluation, the output of a row does not depend on the other rows."""
        rows_are_apart(self.order())

    def test_it_takes_any_key(self) -> None:
        """Typed keys (`jax.random.key`) and legacy keys both work."""
        net = self.order()
        values = net.model.init(jax.random.key(0), net.x)
        same_types((net.params, net.state), values, "any key")


def rows_are_apart(net: Net, state: object = None) -> None:
    """Asserts that in evaluation a row's output does not depend on other rows.

    A single row must have the same output too, unless the net draws random numbers.
    """
    whole = net.evaluate(state=state)
    others = np.concatenate([net.x[:1], 2 - net.x[1:]])
    what = (
        "rows are apart: forward(train=False) gave a row other outputs as the other rows changed; "
        "it uses the batch, as in training"
    )
    equal(whole[:1], net.evaluate(others, state=state)[:1], what, atol=1e-5)
    if draws(net.evaluate(np.tile(net.x[:1], (BATCH, 1)), state=state)):
        return  # the same key gives other random numbers for another shape
    for index in (0, BATCH - 1):
        alone = net.evaluate(net.x[index : index + 1], state=state)
        what = "rows are apart: forward(train=False) gave a row alone other outputs than in a batch"
        equal(whole[index : index + 1], alone, what, atol=1e-5)


def draws(outputs: object) -> bool:
    """Whether outputs of equal rows differ, so the net draws random numbers."""
    outputs = np.asarray(outputs)
    return not np.allclose(outputs, outputs[:1], rtol=1e-4, atol=1e-4)
