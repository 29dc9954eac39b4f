"""Learner: a model, its optimiser and the state of both; the core of ready-made Experiments."""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._arguments import whole
from solstice._errors import DataError
from solstice._keywords import keywords_explained
from solstice._replace import replace
from solstice._types import Adaptable, Batch, Inputs, ModelOutputs, Outputs
from solstice.compat import Model, Optimizer, OptState, Params, State, adapt_argument
from solstice.experiments._gradients import Forward, Loss, Objective
from solstice.experiments._inputs import (
    check_fits,
    check_params,
    check_sample,
    floating_expected,
    several_hint,
)
from solstice.experiments._keys import key_of
from solstice.experiments._per_example import PerExample, per_example


class Learner(eqx.Module):
    """`Learner(flax_module, optax.adam(3e-4))`: a model, its optimiser and the state of both.

    ```python
    def objective(model, batch):
        x, y = batch
        losses = jnp.square(model(x) - y)
        return losses, None, solstice.metrics.Mean(losses)

    learner = learner.setup(x)                              # values for inputs like x
    learner, outputs = learner.update(objective, (x, y))       # one step of training
    outputs = learner.evaluate(objective, (x, y))              # with the weights for evaluation
    outputs = learner(x)
    ```

    Ready-made Experiments have one (a GAN has two), and yours can have one too.

    Args:
        model: a `solstice.compat.Model`, or a model of any framework with an adapter.
        optimizer: a `solstice.compat.Optimizer`, or an optimiser with an adapter.
        seed: an integer or a PRNG key (typed or legacy), for the initial weights and for randomness
            in training.
        sample_input: model inputs of a batch of any size, without labels. If given, the Learner is
            set up at once.
        free_axes: number of leading axes of the inputs that may differ from batch to batch: 1 for
            the number of examples, 2 if the length of texts may differ too.

    Attributes:
        params, state, opt_state: the model's params and state, and the optimiser's state; None
            before `setup`.
        key: the PRNG key from which, with `step`, the key of each step derives.
        step: number of training steps, an int32 scalar; with `optax.MultiSteps`, micro-steps.

    A fully masked batch has a gradient of 0, but the optimiser still takes a step: momentum and
    weight decay move the weights, and an optimiser that divides by the norm of the gradient, such
    as SAM, produces NaN. Leave such batches out.

    Raises:
        TypeError, solstice.compat.AdapterError: there is no adapter for the model or optimiser; or
            a param of the model is not a floating-point array; or `seed` is neither an integer nor
            a key.
    """

    model: Model
    optimizer: Optimizer
    params: Params
    state: State
    opt_state: OptState
    key: Array
    step: Array
    inputs: tuple[str, ...] | None = eqx.field(static=True)
    """The shape of one example of each input; None before `setup`."""
    free_axes: int = eqx.field(static=True)

    @keywords_explained
    def __init__(
        self,
        model: Adaptable,
        optimizer: Adaptable,
        *,
        seed: int | Array = 0,
        sample_input: Inputs = None,
        free_axes: int = 1,
    ) -> None:
        self.model = adapt_argument("model", "model", model)
        self.optimizer = adapt_argument("optimizer", "optimizer", optimizer)
        self.params = self.state = self.opt_state = self.inputs = None
        self.key = key_of(seed)
        self.step = jnp.zeros((), jnp.int32)
        self.free_axes = whole("free_axes", free_axes)
        if sample_input is not None:
            check_sample(sample_input)
            for name, value in self._initial(sample_input).items():
                setattr(self, name, value)

    def setup(self, x: Inputs) -> Self:
        """`learner = learner.setup(x)`: initialise for inputs with the shapes of `x`.

        A Learner that has been set up is returned unchanged.

        Raises:
            TypeError: a param of the model is not a floating-point array.
        """
        if self.inputs is not None:
            return self
        return replace(self, **self._initial(x))

    def with_params(self, params: Params, state: State = None) -> Self:
        """`learner = learner.with_params(pretrained)`: start from these weights, after `setup`.

        The optimiser's state is initialised for these weights.

        Args:
            params: the weights.
            state: the model's state, such as the averages of BatchNorm; by default it stays.

        Raises:
            ValueError: there are no params yet, or `params` or `state` differ in a path, a shape or
                a dtype.
        """
        check_fits("params", params, self.params)
        if state is None:
            state = self.state
        check_fits("state", state, self.state)
        new = self.optimizer.init(params)
        return replace(self, params=params, state=state, opt_state=new)

    def update(
        self, objective: Objective, batch: Batch, *, micro_batches: int = 1
    ) -> tuple[Self, Outputs]:
        """`learner, outputs = learner.update(objective, batch)`: one step of training.

        Args:
            objective: computes the losses of a batch; see `Objective`.
            batch: a pytree of arrays with the examples on axis 0.
            micro_batches: number of parts into which the batch is cut; one is in memory at a time.
                The gradient is that of the whole batch, also if parts differ in size or weight,
                because weighted losses are summed and divided once at the end. BatchNorm and
                Dropout treat each part separately. The outputs must be Metrics, which are merged.

        Returns:
            The Learner after the step, and the outputs of the objective.

        Raises:
            DataError: `micro_batches` is above 1 and the arrays differ on axis 0.
            TypeError: `micro_batches` is above 1 and the outputs are not Metrics.
        """
        key = jax.random.fold_in(self.key, self.step)
        whole = Loss(self._bound, self.params, self.state, objective, key)
        whole.check_constants(batch)
        if micro_batches == 1:
            loss, grads, state, outputs = whole.gradient(batch)
        else:
            loss, grads, state, outputs = whole.gradient_in_parts(batch, micro_batches)
        params, opt_state = self.optimizer.step(
            grads,
            self.opt_state,
            self.params,
            value=loss,
            value_fn=lambda params: whole.value(params, batch, micro_batches),
        )
        new = replace(self, params=params, state=state, opt_state=opt_state, step=self.step + 1)
        return new, outputs

    def per_example(
        self, objective: Objective, batch: Batch, *, micro_batches: int = 1
    ) -> PerExample:
        """`found = learner.per_example(objective, batch)`: what each example does to the step.

        The arguments are those of `update`. The model, its state and its random numbers are those
        of the step: the batch goes through the model once, and the gradients of the examples add up
        to that of the batch. With BatchNorm, the loss of an example depends on the others. The
        costs are those of a backward pass of the batch for each example.

        Returns:
            A `PerExample`: `loss` and `gradient_norm`, of shape [n].
        """
        key = jax.random.fold_in(self.key, self.step)
        whole = Loss(self._bound, self.params, self.state, objective, key)
        return per_example(whole, batch, micro_batches)

    def evaluate(self, objective: Objective, batch: Batch) -> Outputs:
        """`outputs = learner.evaluate(objective, batch)`: with the weights for evaluation."""
        return objective(self.forward(train=False), batch)[2]

    def __call__(self, x: Inputs) -> ModelOutputs:
        """`outputs = learner(x)`: the model's outputs, with the weights for evaluation.

        Raises:
            DataError: `setup` has not run, or `x` has other shapes than at `setup`.
        """
        return self.forward(train=False)(x)

    def eval_params(self) -> Params:
        """`params = learner.eval_params()`: the weights for evaluation, such as an average.

        Raises:
            DataError: `setup` has not run.
        """
        if self.inputs is None:
            raise DataError(
                "the model has no values yet: train it first, or give `sample_input=` when you "
                "create it"
            )
        return self.optimizer.eval_params(self.opt_state, self.params)

    def forward(self, *, train: bool, key: Array | None = None) -> Forward:
        """`outputs = learner.forward(train=True, key=key)(x)`: the model with its current values.

        Raises:
            DataError: `setup` has not run.
        """
        # In training too, for its error if `setup` has not run.
        params = self.eval_params()
        return self._forward(self.params if train else params, self.state, train, key)

    def check_inputs(self, x: Inputs) -> None:
        """`learner.check_inputs(x)`: raises a DataError if `x` has other shapes than at `setup`."""
        if self.inputs != self._shapes(x):
            raise DataError(
                f"the model was initialised with features whose examples are "
                f"{', '.join(self.inputs or ())}; these are {', '.join(self._shapes(x))}"
                f"{several_hint(self.inputs or (), self._shapes(x))}"
            )

    def _bound(self, params: Params, state: State, key: Array) -> Forward:
        """The model in training, with given values."""
        return self._forward(params, state, True, key)

    def _forward(self, params: Params, state: State, train: bool, key: Array | None) -> Forward:
        return Forward(params, state, self.model, self.check_inputs, train, key)

    def _initial(self, x: Inputs) -> dict[str, Any]:
        """The initial values of the fields that depend on the inputs."""
        # The steps need another key than the weights.
        init_key, key = jax.random.split(self.key)
        with floating_expected(x):
            params, state = self.model.init(init_key, x)
        check_params(params)
        return {
            "params": params,
            "state": state,
            "opt_state": self.optimizer.init(params),
            "key": key,
            "inputs": self._shapes(x),
        }

    def _shapes(self, x: Inputs) -> tuple[str, ...]:
        """The shape of one example, leaf by leaf, as text: static, and ready for a message."""
        return tuple(
            f"{path}{list(np.shape(leaf)[self.free_axes :])}"
            for path, leaf in _tree.leaves_by_path(x)
        )
