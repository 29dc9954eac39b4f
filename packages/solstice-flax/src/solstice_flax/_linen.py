"""A Flax Linen module as a Solstice model."""

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
from jax import Array

from solstice.compat import Params, State, call_arguments

_TRAIN_NAMES = ("train", "training", "is_training")
_EVAL_NAMES = ("deterministic", "eval", "inference", "use_running_average")


@jax.tree_util.register_static
@dataclass(eq=False)
class FlaxModel:
    """`FlaxModel(MLP(features=[200, 10]))`: a Linen module as a `solstice.compat.Model`.

    The collection "params" is the Params; every other collection that `init` makes (such as
    "batch_stats") is the State, which training updates and evaluation leaves alone.

    A module that behaves otherwise in training takes a flag in its `__call__`. One named `train`,
    `training` or `is_training` is True in training; one named `deterministic`, `eval`,
    `inference` or `use_running_average` is True in evaluation; the module may take several.
    Every random stream ("dropout" or any other) is fed from the key of `forward`.

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

    def __post_init__(self) -> None:
        given: Any = self.module
        if not isinstance(given, nn.Module):
            raise TypeError(
                f"FlaxModel takes a flax.linen.Module, as in `FlaxModel(MLP())`; it was given "
                f"{given!r:.80}"
            )
        call = cast("Any", given.__call__)
        names = set(inspect.signature(call).parameters)
        if self.train_arg is not None and self.train_arg not in names:
            raise TypeError(
                f"{type(given).__name__}.__call__ has no parameter {self.train_arg!r}; it has: "
                f"{', '.join(sorted(names))}"
            )
        in_training = {name: True for name in (*_TRAIN_NAMES, self.train_arg) if name in names}
        in_evaluation = {
            name: False for name in _EVAL_NAMES if name in names and name != self.train_arg
        }
        self._flags = {**in_training, **in_evaluation}

    def init(self, key: Array, x: Any, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`."""
        module: Any = self.module
        inputs, options = call_arguments(x, unpack=self.unpack)
        variables = dict(module.init(key, *inputs, **options, **self._flags))
        params = variables.pop("params", {})
        new = jax.eval_shape(partial(self._train, module), params, variables, x, key)[1]
        # What `sow` collects is output, and would grow from step to step.
        state = {
            name: values
            for name, values in variables.items()
            if jax.tree.structure(values) == jax.tree.structure(new.get(name))
        }
        return params, state

    def forward(
        self, params: Params, state: State, x: Any, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`."""
        module: Any = self.module
        if not train:
            flags = {name: not value for name, value in self._flags.items()}
            inputs, options = call_arguments(x, unpack=self.unpack)
            return module.apply({"params": params, **state}, *inputs, **options, **flags), state
        outputs, new = self._train(module, params, state, x, key)
        return outputs, dict(new)

    def _train(self, module: Any, params: Params, state: State, x: Any, key: Any) -> Any:
        # Linen feeds a stream that is not named from "params", so this one key serves them all.
        rngs = None if key is None else {"params": key}
        variables = {"params": params, **state}
        inputs, options = call_arguments(x, unpack=self.unpack)
        return module.apply(
            variables, *inputs, rngs=rngs, mutable=list(state), **options, **self._flags
        )
