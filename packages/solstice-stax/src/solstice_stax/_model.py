"""StaxModel: a Stax network as a Solstice model."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import jax
from jax import Array
from jax.example_libraries import stax

from solstice.compat import Params, State, call_in_evaluation

Pair: TypeAlias = tuple[Callable[..., Any], Callable[..., Any]]
"""The `(init_fn, apply_fn)` pair of Stax layers and combinators."""


@jax.tree_util.register_static
@dataclass(eq=False)
class StaxModel:
    """`StaxModel(stax.serial(stax.Dense(64), stax.Relu, stax.Dense(10)))`: wrap a Stax network.

    In Stax, the mode of a layer is set when it is built. So give a network with Dropout as a
    function of the mode:

    ```python
    def net(mode):
        return stax.serial(stax.Dense(64), stax.Relu, stax.Dropout(0.9, mode), stax.Dense(10))

    model = StaxModel(net)   # net("train") in training, net("test") in evaluation
    ```

    If a network draws random numbers in evaluation, it uses `jax.random.key(0)` there.

    The rate of Stax's Dropout is the fraction of kept units. Its BatchNorm has no running
    statistics, and uses those of the batch in evaluation too. The State is empty.

    Args:
        net: an `(init_fn, apply_fn)` pair, or a function from "train" or "test" to one.

    Raises:
        TypeError: `net` is neither.
        ValueError: in evaluation, the network has a Dropout with mode "train".
    """

    net: Pair | Callable[[str], Pair]

    def __post_init__(self) -> None:
        self._pair("test")

    def init(self, key: Array, x: Any, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`."""
        init_fn, _ = self._pair("train")

        def shape_of(leaf: Any) -> tuple[int, ...]:
            return leaf.shape

        _, params = init_fn(key, jax.tree.map(shape_of, x))
        return params, ()

    def forward(
        self, params: Params, state: State, x: Any, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`."""
        _, apply_fn = self._pair("train" if train else "test")

        def call(key: Array | None) -> Any:
            return apply_fn(params, x, rng=key)

        if train:
            return call(key), state
        if _drops(apply_fn, set()):
            raise ValueError(
                "this Stax network has a Dropout with mode 'train', which would drop units in "
                "evaluation too: give StaxModel a function of the mode, as in `def net(mode): "
                "return stax.serial(..., stax.Dropout(rate, mode))`"
            )
        return call_in_evaluation(call, key), state

    def _pair(self, mode: str) -> Pair:
        net: Any = self.net
        made: Any = net(mode) if callable(net) else net
        pair = cast("tuple[Any, ...]", made) if isinstance(made, tuple) else ()
        if len(pair) != 2 or not all(callable(part) for part in pair):
            raise TypeError(
                f"StaxModel takes an (init_fn, apply_fn) pair, or a function from a mode to one; "
                f"it was given {self.net!r:.80}"
            )
        return cast("Pair", pair)


def _drops(function: Any, seen: set[int]) -> bool:
    """Whether a Stax function or its inner functions contain a Dropout with mode "train"."""
    if id(function) in seen or not inspect.isfunction(function):
        return False
    seen.add(id(function))
    values = dict(inspect.getclosurevars(function).nonlocals)
    if function.__module__ == stax.__name__ and function.__qualname__.startswith("Dropout."):
        return values.get("mode") == "train"
    parts = [part for value in values.values() for part in _parts(value)]
    return any(_drops(part, seen) for part in parts)


def _parts(value: Any) -> tuple[Any, ...]:
    return tuple(cast("Any", value)) if isinstance(value, list | tuple) else (value,)
