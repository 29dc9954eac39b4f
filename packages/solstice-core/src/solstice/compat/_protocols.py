"""The two protocols of the adapter contract, version 1."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import jax
from jax import Array

Params: TypeAlias = Any
"""A pytree whose leaves are all inexact arrays: `jax.grad` takes it as it is."""

State: TypeAlias = Any
"""A pytree of arrays; its structure, shapes and dtypes never change. It may be empty."""

OptState: TypeAlias = Any
"""A pytree of arrays; its structure, shapes and dtypes never change."""


@runtime_checkable
class Model(Protocol):
    """A network as two pure functions.

    ```python
    params, state = model.init(key, x)
    outputs, state = model.forward(params, state, x, train=True, key=key)
    ```

    `x` is an array or a pytree of arrays, and axis 0 of every leaf is the batch. An adapter is
    static: it has no leaves (`jax.tree_util.register_static`) and hashes by identity. It does not
    inherit from this class.
    """

    def init(self, key: Array, x: Any, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`: initial values for inputs like `x`.

        Args:
            key: a PRNG key, typed or legacy. A model that already holds values ignores it.
            x: an input, of which shapes and dtypes matter. (Haiku's BatchNorm takes its first
                statistics from it too.)

        Returns:
            Params and State. The call has no side effect, and works under `jax.eval_shape`.
        """
        ...

    def forward(
        self, params: Params, state: State, x: Any, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`: apply it.

        Args:
            params: as from `init`, or updated.
            state: as from `init`, or from an earlier `forward`.
            x: an input; axis 0 of every leaf is the batch.
            train: a Python bool. False needs no key and gives back the state that it was given.
            key: a PRNG key for what is random, in training another for each step. Evaluation is
                given none; a network that draws there too draws from `jax.random.key(0)`, so that
                the same inputs give the same outputs. See `call_in_evaluation`.

        Returns:
            The outputs, axis 0 of every leaf being the batch, and the new State.
        """
        ...


@runtime_checkable
class Optimizer(Protocol):
    """An optimiser as pure functions.

    ```python
    opt_state = optimizer.init(params)
    params, opt_state = optimizer.step(grads, opt_state, params)
    ```

    Static like a `Model` adapter.

    One that does not update the params in every `step`, since it gathers gradients or leaves out
    what is not finite, says so by one more method, which is optional:

    ```python
    def has_updated(self, before, after, /):  # two states, around one `step`
        return after.num_updates != before.num_updates  # a boolean scalar
    ```

    `solstice.compat.ema` averages updates, and asks it; a step in which the params change is one in
    any case. Without the method, every step is an update.
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
            grads: the gradients, of the structure of `params`.
            state: as from `init`, or from an earlier `step`.
            params: the Params that the gradients were taken at.
            value: the loss at `params`, a scalar, for optimisers that use it.
            value_fn: the loss as a function of Params on this batch, deterministic, for
                optimisers that search along a line.
            **extra: what else a particular optimiser takes; others ignore it, as far as they show
                what they take.

        Returns:
            New Params (not updates to add), and the new state.
        """
        ...

    def eval_params(self, state: OptState, params: Params, /) -> Params:
        """`params = optimizer.eval_params(opt_state, params)`: what to evaluate with.

        The Params themselves, unless the optimiser keeps an average or another point for it.
        """
        ...


def has_updated(optimizer: Optimizer, before: OptState, after: OptState) -> Any:
    """Whether the step between two states has updated the params: True, or a boolean array."""
    ask = getattr(optimizer, "has_updated", None)
    return True if ask is None else ask(before, after)


def call_arguments(x: Any, *, unpack: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`net(*args, **kwargs)`: the arguments for a network that may have several inputs.

    Args:
        x: the inputs of `Model.init` and `Model.forward`.
        unpack: whether a tuple or list is several positional arguments and a mapping several named
            ones; if not, `x` is the one argument.

    Returns:
        `args, kwargs`.
    """
    if unpack and isinstance(x, Mapping):
        return (), dict(cast("Mapping[str, Any]", x))
    if unpack and isinstance(x, tuple | list):
        return tuple(cast("tuple[Any, ...]", x)), {}
    return (x,), {}


def call_in_evaluation(call: Callable[[Array | None], Any], key: Array | None) -> Any:
    """`call_in_evaluation(lambda key: net.apply(params, x, rng=key), key)`: with a key if need be.

    Evaluation is repeatable, so it is given no key, and most networks need none. One that draws in
    evaluation too, such as a variational autoencoder, fails without, and is called with
    `jax.random.key(0)`.

    Args:
        call: the network at inputs, as a function of a key or None. It has no side effect.
        key: what `Model.forward` was given. If that is a key, it is the one that is used.

    Returns:
        What `call` gives; if it fails in both ways, it raises the error of the call without a key.
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
