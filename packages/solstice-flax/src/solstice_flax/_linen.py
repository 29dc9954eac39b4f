"""FlaxModel: a Flax Linen module as a Solstice model."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from flax.errors import InvalidRngError, ModifyScopeVariableError
from jax import Array

from solstice.compat import Params, State, call_arguments
from solstice_flax._flags import training_flags


@jax.tree_util.register_static
@dataclass(eq=False)
class FlaxModel:
    """`FlaxModel(MLP(features=[200, 10]))`: wrap a Linen module as a `solstice.compat.Model`.

    The collection "params" is the Params. All other collections of `init`, such as "batch_stats",
    are the State, which only training updates.

    A module that differs between training and evaluation has a flag in its `__call__`. Flags named
    `train`, `training` or `is_training` are True in training; those named `deterministic`, `eval`,
    `inference` or `use_running_average` are True in evaluation. There may be several.

    All random streams of the module, whatever their names, derive from the key of `forward`: the
    first receives the key, the i-th after it `fold_in(key, i)`. If a module draws random numbers in
    evaluation (a VAE, or Dropout that no flag reaches), it uses `jax.random.key(0)` there, so the
    same inputs give the same outputs.

    Args:
        module: an unbound Linen module.
        train_arg: the name of a flag that is True in training, if it is not one of the above.
        unpack: whether `x` has several inputs: a tuple becomes positional arguments, a dict keyword
            arguments. By default `x` is a single argument.

    Raises:
        TypeError: `module` is not a Linen module, or its `__call__` has no parameter `train_arg`.
    """

    module: nn.Module
    train_arg: str | None = None
    unpack: bool = False
    _flags: dict[str, bool] = field(init=False, repr=False)
    _streams: dict[bool, list[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given: Any = self.module
        if not isinstance(given, nn.Module):
            raise TypeError(
                f"FlaxModel takes a flax.linen.Module, as in `FlaxModel(MLP())`; it was given "
                f"{given!r:.80}"
            )
        self._flags = training_flags(given, self.train_arg)
        self._streams = {True: [], False: []}

    def init(self, key: Array, x: Any, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`."""
        module: Any = self.module
        inputs, options = call_arguments(x, unpack=self.unpack)
        variables = dict(module.init(key, *inputs, **options, **self._flags))
        params = variables.pop("params", {})
        return params, self._lasting(params, variables, x, key)

    def _lasting(self, params: Params, variables: dict[str, Any], x: Any, key: Array) -> State:
        """The variables without the collections of `sow`, which are outputs and would grow."""
        try:
            new = jax.eval_shape(partial(self.forward, train=True), params, variables, x, key=key)
        except Exception:
            # A decoder with a cache is initialised with a whole sequence but called with a token,
            # so it may fail with `x`.
            return {k: values for k, values in variables.items() if k != "intermediates"}
        return {
            name: values
            for name, values in variables.items()
            if jax.tree.structure(values) == jax.tree.structure(new[1].get(name))
        }

    def forward(
        self, params: Params, state: State, x: Any, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`."""
        module: Any = self.module
        inputs, options = call_arguments(x, unpack=self.unpack)
        flags = {name: value is train for name, value in self._flags.items()}
        call = partial(module.apply, {"params": params, **state}, *inputs, **options, **flags)
        streams = self._streams[train]
        if train:
            outputs, new = _fed(partial(call, mutable=list(state)), streams, key)
            return outputs, dict(new)
        key = jax.random.key(0) if key is None else key
        try:
            return _fed(call, streams, key), state
        except ModifyScopeVariableError:  # the module updates State in evaluation: drop the update
            return _fed(partial(call, mutable=list(state)), streams, key)[0], state


def _fed(call: Callable[..., Any], streams: list[str], key: Array | None) -> Any:
    """Calls with a key for each stream, and appends streams that the module asks for to `streams`.

    Each stream is passed by name, because `nn.scan` and `nn.vmap` split streams by name. With only
    a "params" key, from which Linen derives all others, every step and lane would draw the same
    numbers.
    """
    while True:
        try:
            return call(rngs=None if key is None else _keys(streams, key))
        except InvalidRngError as error:
            asked = re.search(r'needs PRNG for "(.+?)"', str(error))
            if key is None or asked is None:
                raise
            # A transformation may filter out a given stream; Linen then uses "params" instead.
            name = "params" if asked[1] in streams else asked[1]
            if name in streams:
                raise
            streams.append(name)


def _keys(streams: list[str], key: Array) -> dict[str, Array]:
    return {name: jax.random.fold_in(key, i) if i else key for i, name in enumerate(streams)}
