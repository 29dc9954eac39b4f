"""HaikuModel: a transformed Haiku function as a Solstice model."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import haiku as hk
import jax
from jax import Array

from solstice.compat import Params, State, call_arguments, call_in_evaluation

_TRAIN_NAMES = ("is_training", "train", "training")


@jax.tree_util.register_static
@dataclass(eq=False)
class HaikuModel:
    """`HaikuModel(hk.transform_with_state(net))`: wrap a transformed Haiku function as a `Model`.

    The function takes the inputs, and a flag if training differs from evaluation:

    ```python
    def net(x, is_training):
        x = hk.Linear(64)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training)
        if is_training:
            x = hk.dropout(hk.next_rng_key(), 0.1, x)
        return hk.Linear(10)(x)
    ```

    If a function draws random numbers in evaluation (a VAE, or `hk.dropout` without a flag), it
    uses `jax.random.key(0)` there, so the same inputs give the same outputs.

    Args:
        transformed: the result of `hk.transform` or `hk.transform_with_state`, also through
            `hk.without_apply_rng`.
        train_arg: the name of the function's training flag. By default a parameter `is_training`,
            `train` or `training`. Give it if the signature does not show the flag; "" is no flag.
        unpack: whether `x` has several inputs: a tuple becomes positional arguments, a dict keyword
            arguments. By default `x` is a single argument.

    Raises:
        TypeError: `transformed` is not a transformed function.
    """

    transformed: hk.Transformed | hk.TransformedWithState
    train_arg: str | None = None
    unpack: bool = False
    _with_state: hk.TransformedWithState = field(init=False, repr=False)
    _flag: str = field(init=False, repr=False)
    _takes_key: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given: Any = self.transformed
        if isinstance(given, hk.TransformedWithState):
            self._with_state, rng_position = given, 2
        elif isinstance(given, hk.Transformed):
            self._with_state, rng_position = hk.with_empty_state(given), 1
        else:
            raise TypeError(
                f"HaikuModel takes the result of hk.transform or hk.transform_with_state, as in "
                f"`HaikuModel(hk.transform(net))`; it was given {given!r:.80}"
            )
        names = list(inspect.signature(given.apply).parameters)
        self._takes_key = names[rng_position : rng_position + 1] == ["rng"]
        self._flag = _train_flag(given) if self.train_arg is None else self.train_arg

    def init(self, key: Array, x: Any, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`."""
        inputs, options = call_arguments(x, unpack=self.unpack)
        return self._with_state.init(key, *inputs, **options, **self._flags(True))

    def forward(
        self, params: Params, state: State, x: Any, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`."""
        inputs, options = call_arguments(x, unpack=self.unpack)

        def call(key: Array | None) -> tuple[Any, State]:
            keys = (key,) if self._takes_key else ()
            return self._with_state.apply(
                params, state, *keys, *inputs, **options, **self._flags(train)
            )

        return call(key) if train else (call_in_evaluation(call, key)[0], state)

    def _flags(self, train: bool) -> dict[str, bool]:
        return {self._flag: train} if self._flag else {}


def _train_flag(transformed: hk.Transformed | hk.TransformedWithState) -> str:
    """The training flag among the parameters of `apply`, which Haiku copies from the function."""
    names = inspect.signature(transformed.apply).parameters
    return next((name for name in _TRAIN_NAMES if name in names), "")
