"""Gradients: the value and the gradient of an objective, of a whole batch or of its parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from solstice import _tree
from solstice._console import warn
from solstice._metrics import Metrics
from solstice._types import AnyArray, Batch, Inputs, ModelOutputs, Outputs
from solstice.compat import Model, Params, State
from solstice.experiments._constants import constants_of
from solstice.experiments._inputs import floating_expected
from solstice.experiments._parts import added, over_parts, quotient, weighted_sums, wide_zeros


@dataclass(eq=False, repr=False)
class Forward:
    """`outputs = model(x)`: a model bound to its params and state, for one step.

    Attributes:
        params: the params that the model uses; in training, the gradient is taken in these.
        state: the model's state after the calls so far.
    """

    params: Params
    state: State
    _model: Model
    _check_inputs: Callable[[Inputs], None]
    _train: bool
    _key: Array | None
    _calls: int = 0

    def __call__(self, x: Inputs) -> ModelOutputs:
        self._check_inputs(x)
        key = self._key
        if key is not None and self._calls:  # a second call in a step needs other random numbers
            key = jax.random.fold_in(key, self._calls)
        self._calls += 1
        with floating_expected(x):
            outputs, self.state = self._model.forward(
                self.params, self.state, x, train=self._train, key=key
            )
        return outputs


class Objective(Protocol):
    """`losses, weights, outputs = objective(model, batch)`: the function that a Learner minimises.

    `model(x)` returns the model's outputs; the Learner chooses training or evaluation mode.
    `losses` have shape [n, ...]. `weights` broadcast against them, or are None for equal weights.
    The loss is the weighted mean. `outputs` are usually Metrics.

    `model.params` are the params of this call, for a penalty on the weights:

    ```python
    def losses(self, model, batch):
        x, y = batch
        penalty = 1e-4 * sum(jnp.sum(jnp.square(w)) for w in jax.tree.leaves(model.params))
        losses = jnp.square(model(x) - y) + penalty
        return losses, None, solstice.metrics.Mean(losses)
    ```

    The gradient is taken in `model.params`. Everything else is a constant, `learner.params` too:
    if the loss depends on these, a warning says so when the step is compiled.
    """

    def __call__(
        self, model: Forward, batch: Batch, /
    ) -> tuple[Array, AnyArray | None, Outputs]: ...


_Sums: TypeAlias = tuple[State, Array, Array, Params]
"""The model's state, and the sums of losses, weights and gradients so far."""


@dataclass(frozen=True, eq=False)
class Loss:
    """The value and the gradient of an objective at one step of a Learner."""

    bind: Callable[[Params, State, Array], Forward]
    params: Params
    state: State
    objective: Objective
    key: Array

    def check_constants(self, batch: Batch) -> None:
        """Warns if the loss depends on `learner.params`, which have no gradient.

        It traces the loss once more, so objectives of the ready-made Experiments are skipped.
        """
        function = getattr(self.objective, "__func__", self.objective)
        if str(getattr(function, "__module__", None)).startswith(f"{__package__}."):
            return

        def loss(params: Params) -> Array:
            total, weight, _, _ = self._sums(params, self.state, batch, self.key)
            return quotient(total, weight)

        found = constants_of(loss, self.params, self.params)
        if found:
            warn(
                f"the loss depends on `learner.params{found[0]}`, which is constant in an "
                f"objective: it has no gradient there. Write `model.params{found[0]}`, with the "
                f"`model` argument of the objective; or, if you want a constant, such as a "
                f"target, `jax.lax.stop_gradient(...)` of it",
                stacklevel=3,
            )

    def gradient(self, batch: Batch) -> tuple[Array, Params, State, Outputs]:
        """Loss, gradient, model state and outputs of a batch."""

        def mean(params: Params) -> tuple[Array, tuple[State, Outputs]]:
            total, weight, state, outputs = self._sums(params, self.state, batch, self.key)
            return quotient(total, weight), (state, outputs)

        (loss, (state, outputs)), grads = jax.value_and_grad(mean, has_aux=True)(self.params)
        return loss, grads, state, outputs

    def gradient_in_parts(self, batch: Batch, parts: int) -> tuple[Array, Params, State, Outputs]:
        """As `gradient`, one part of the batch at a time.

        Sums of losses, weights and gradients are accumulated, and divided once at the end, so
        parts may differ in size and weight.
        """
        params = self.params

        def total_of(
            params: Params, state: State, part: Batch, key: Array
        ) -> tuple[Array, tuple[Array, State, Metrics]]:
            total, weight, state, outputs = self._sums(params, state, part, key)
            return total, (weight, state, _as_metrics(outputs))

        def add(carry: _Sums, part: tuple[Array, Batch]) -> tuple[_Sums, Metrics]:
            state, total, weight, sums = carry
            key = jax.random.fold_in(self.key, part[0])
            (more, (shares, state, outputs)), grads = jax.value_and_grad(total_of, has_aux=True)(
                params, state, part[1], key
            )
            sums = _tree.map(added, sums, grads)
            return (state, total + more, weight + shares, sums), outputs

        zero = jnp.zeros(())
        start = self.state, zero, zero, _tree.map(wide_zeros, params)
        (state, total, weight, sums), outputs = over_parts(add, start, batch, parts)

        def mean(sum_: Array, param: Array) -> Array:
            return quotient(sum_, weight).astype(param.dtype)  # sums are in float32 or wider

        grads = _tree.map(mean, sums, params)
        return quotient(total, weight), grads, state, outputs

    def value(self, params: Params, batch: Batch, parts: int) -> Array:
        """The loss at other params with the same randomness, for a line search."""
        if parts == 1:
            total, weight, _, _ = self._sums(params, self.state, batch, self.key)
            return quotient(total, weight)

        def add(
            carry: tuple[State, Array, Array], part: tuple[Array, Batch]
        ) -> tuple[tuple[State, Array, Array], Metrics]:
            state, total, weight = carry
            key = jax.random.fold_in(self.key, part[0])
            more, shares, state, outputs = self._sums(params, state, part[1], key)
            return (state, total + more, weight + shares), _as_metrics(outputs)

        zero = jnp.zeros(())
        (_, total, weight), _ = over_parts(add, (self.state, zero, zero), batch, parts)
        return quotient(total, weight)

    def _sums(
        self, params: Params, state: State, batch: Batch, key: Array
    ) -> tuple[Array, Array, State, Outputs]:
        """The sums of weighted losses and of weights, the model's state, and the outputs."""
        model = self.bind(params, state, key)
        losses, weights, outputs = self.objective(model, batch)
        total, weight = weighted_sums(losses, weights)
        return total, weight, model.state, outputs


def _as_metrics(outputs: Outputs) -> Metrics:
    if not isinstance(outputs, Metrics):
        raise TypeError(
            f"with micro_batches, the outputs of an objective are merged, so they must be Metrics, "
            f"such as `solstice.metrics.Mean(losses, weights)`; they are {outputs!r:.60}"
        )
    return outputs
