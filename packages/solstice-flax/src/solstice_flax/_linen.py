"""A Flax Linen module as a Solstice model."""

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
    """`FlaxModel(MLP(features=[200, 10]))`: a Linen module as a `solstice.compat.Model`.

    The collection "params" is the Params; every other collection that `init` makes (such as
    "batch_stats") is the State, which training updates and evaluation leaves alone.

    A module that behaves otherwise in training takes a flag in its `__call__`. One named `train`,
    `training` or `is_training` is True in training; one named `deterministic`, `eval`,
    `inference` or `use_running_average` is True in evaluation; the module may take several.
    Every random stream that the module asks for, whatever its name, is fed from the key of
    `forward`, by name: the first with the key, the i-th after it with `fold_in(key, i)`. A module
    that draws in evaluation too, such as a VAE, draws from `jax.random.key(0)` there, so the same
    inputs give the same outputs. So does Dropout where no flag reaches it.

    Args:
        module: the Linen module, not bound.
        train_arg: the name of a flag that is True in training, where it has another name.
        unpack: whether `x` is several inputs: a tuple is the network's positional arguments, a dict
            its named ones. If not, `x` is one argument, whatever it is.

    Raises:
        TypeError: `module` is no Linen module, or its `__call__` has no such flag.
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
        """The variables without what `sow` collects, which is output and grows at each step."""
        try:
            new = jax.eval_shape(partial(self.forward, train=True), params, variables, x, key=key)
        except Exception:
            # A decoder with a cache is initialised with a whole sequence, and called with a token.
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
        except ModifyScopeVariableError:  # it writes in evaluation too, which is dropped
            return _fed(partial(call, mutable=list(state)), streams, key)[0], state


def _fed(call: Callable[..., Any], streams: list[str], key: Array | None) -> Any:
    """The call with a key for each stream; `streams` gets the names that it turns out to lack.

    Only by its name can a stream be split by `nn.scan` and `nn.vmap`: with a key for "params"
    alone, of which Linen feeds all others, every step and lane would draw the same numbers.
    """
    while True:
        try:
            return call(rngs=None if key is None else _keys(streams, key))
        except InvalidRngError as error:
            asked = re.search(r'needs PRNG for "(.+?)"', str(error))
            if key is None or asked is None:
                raise
            # A transformation may shut out one that is given; then Linen takes "params" for it.
            name = "params" if asked[1] in streams else asked[1]
            if name in streams:
                raise
            streams.append(name)


def _keys(streams: list[str], key: Array) -> dict[str, Array]:
    return {name: jax.random.fold_in(key, i) if i else key for i, name in enumerate(streams)}
