"""A Stax network as a Solstice model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import jax
from jax import Array

from solstice.compat import Params, State

Pair: TypeAlias = tuple[Callable[..., Any], Callable[..., Any]]
"""The `(init_fn, apply_fn)` pair that Stax layers and combinators give."""


@jax.tree_util.register_static
@dataclass(eq=False)
class StaxModel:
    """`StaxModel(stax.serial(stax.Dense(64), stax.Relu, stax.Dense(10)))`: a Stax network.

    A Stax layer learns its mode when it is built, so a network with Dropout is given as a
    function of the mode:

    ```python
    def net(mode):
        return stax.serial(stax.Dense(64), stax.Relu, stax.Dropout(0.9, mode), stax.Dense(10))

    model = StaxModel(net)   # net("train") in training, net("test") in evaluation
    ```

    Note that Stax's Dropout takes the rate of units that are kept. Its BatchNorm has no running
    statistics: it normalises by the batch at evaluation too. The State is empty.

    Args:
        net: an `(init_fn, apply_fn)` pair, or a function from "train" or "test" to one.

    Raises:
        TypeError: `net` is neither.
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
        if not train:
            # Dropout asks for a key in mode "test" too, and uses none. A pair that was built in
            # mode "train" must not get one, or it would go on dropping units unnoticed.
            key = jax.random.key(0) if self._is_factory else None
        return apply_fn(params, x, rng=key), state

    @property
    def _is_factory(self) -> bool:
        return not isinstance(self.net, tuple)

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
