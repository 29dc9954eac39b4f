"""The protocols of adapters, Model and Optimizer, version 1."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import jax
from jax import Array

from solstice._types import Batch

_T = TypeVar("_T")

Params: TypeAlias = Any
"""A pytree of inexact arrays, so that `jax.grad` accepts it."""

State: TypeAlias = Any
"""A pytree of arrays, maybe empty; its structure, shapes and dtypes never change."""

OptState: TypeAlias = Any
"""A pytree of arrays; its structure, shapes and dtypes never change."""


@runtime_checkable
class Model(Protocol):
    """`class ToynetModel`: a network as two pure functions, `init` and `forward`.

    ```python
    params, state = model.init(key, x)
    outputs, state = model.forward(params, state, x, train=True, key=key)
    ```

    `x` is an array or a pytree of arrays with the batch on axis 0 of every leaf. An adapter is
    static: it has no leaves (`jax.tree_util.register_static`) and hashes by identity. It need not
    inherit from this class.
    """

    def init(self, key: Array, x: Batch, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`: initial values for inputs like `x`.

        Args:
            key: a PRNG key, typed or legacy. A model that already has values ignores it.
            x: an input; only its shapes and dtypes matter, except that Haiku's BatchNorm takes its
                first statistics from its values.

        Returns:
            Params and State. The call has no side effects, and works under `jax.eval_shape`.
        """
        ...

    def forward(
        self, params: Params, state: State, x: Batch, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`: apply the model.

        Args:
            params: from `init`, or updated.
            state: from `init`, or from an earlier `forward`.
            x: an input with the batch on axis 0 of every leaf.
            train: a Python bool. With False, no key is needed and the given state is returned.
            key: a PRNG key for randomness; in training it differs from step to step. In evaluation
                it is None, and a network that needs a key uses `jax.random.key(0)`, so the same
                inputs give the same outputs. See `call_in_evaluation`.

        Returns:
            The outputs, with the batch on axis 0 of every leaf, and the new State.
        """
        ...


@runtime_checkable
class Optimizer(Protocol):
    """`class ToyOptimizer`: an optimiser as pure functions, `init`, `step` and `eval_params`.

    ```python
    opt_state = optimizer.init(params)
    params, opt_state = optimizer.step(grads, opt_state, params)
    ```

    An adapter is static, like that of a `Model`.

    An optimiser that does not update the params in every `step`, because it accumulates gradients
    or skips non-finite ones, has another, optional method:

    ```python
    def has_updated(self, before, after, /):  # two states, around one `step`
        return after.num_updates != before.num_updates  # a boolean scalar
    ```

    `solstice.compat.ema` calls it, to average only after updates. A step that changes the params
    always counts as an update. Without the method, every step counts.
    """

    def init(self, params: Params, /) -> OptState:
        """`opt_state = optimizer.init(params)`: the initial state for these Params."""
        ...

    def step(
        self,
        grads: Params,
        state: OptState,
        params: Params,
        /,
        *,
        value: Array | None = None,
        value_fn: Callable[[Params], Array] | None = None,
        **extra: Any,
    ) -> tuple[Params, OptState]:
        """`params, opt_state = optimizer.step(grads, opt_state, params)`: one update.

        Args:
            grads: the gradients, with the structure of `params`.
            state: from `init`, or from an earlier `step`.
            params: the Params at which the gradients were taken.
            value: the loss at `params`, a scalar, for optimisers that use it.
            value_fn: the loss on this batch as a deterministic function of Params, for line
                searches.
            **extra: further arguments of a particular optimiser; others ignore them, as far as
                their signature shows which they accept.

        Returns:
            New Params (not updates to add), and the new state.
        """
        ...

    def eval_params(self, state: OptState, params: Params, /) -> Params:
        """`params = optimizer.eval_params(opt_state, params)`: the Params for evaluation.

        These are `params`, unless the optimiser has an average or another point for evaluation.
        """
        ...


def has_updated(optimizer: Optimizer, before: OptState, after: OptState) -> bool | Array:
    """Whether the step between two states has updated the params: True, or a boolean array."""
    ask = getattr(optimizer, "has_updated", None)
    return True if ask is None else ask(before, after)


@dataclass(frozen=True)
class Around:
    """An optimiser around another, whose state is the first part of its own."""

    optimizer: Optimizer

    def eval_params(self, state: OptState, params: Params, /) -> Params:
        """`params = optimizer.eval_params(opt_state, params)`."""
        return self.optimizer.eval_params(state[0], params)

    def has_updated(self, before: OptState, after: OptState, /) -> bool | Array:
        """`optimizer.has_updated(before, after)`: see `Optimizer`."""
        return has_updated(self.optimizer, before[0], after[0])


def call_arguments(x: Batch, *, unpack: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`net(*args, **kwargs)`: the arguments of a network that may have several inputs.

    Args:
        x: the inputs of `Model.init` and `Model.forward`.
        unpack: whether a tuple or list becomes positional arguments, and a mapping keyword
            arguments; if false, `x` is the only argument.

    Returns:
        `args, kwargs`.
    """
    if unpack and isinstance(x, Mapping):
        return (), dict(cast("Mapping[str, Any]", x))
    if unpack and isinstance(x, tuple | list):
        return tuple(cast("tuple[Any, ...]", x)), {}
    return (x,), {}


def call_in_evaluation(call: Callable[[Array | None], _T], key: Array | None) -> _T:
    """`call_in_evaluation(lambda key: net.apply(params, x, rng=key), key)`: evaluate repeatably.

    Evaluation has no key, so that it is repeatable, and most networks need none. A network that
    draws random numbers in evaluation too, such as a variational autoencoder, fails without a key;
    it is then called with `jax.random.key(0)`.

    Args:
        call: the network on its inputs as a function of a key or None, without side effects.
        key: the key of `Model.forward`; if it is not None, it is used.

    Returns:
        The result of `call`. If it fails with and without a key, the error is that without a key.
    """
    if key is not None:
        return call(key)
    try:
        return call(None)
    except Exception as error:
        without = error
    try:
        return call(jax.random.key(0))
    except Exception:
        raise without from None
