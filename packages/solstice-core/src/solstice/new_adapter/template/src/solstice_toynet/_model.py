"""ToynetModel: a toynet model as a Solstice model."""

from dataclasses import dataclass, field
from typing import Any

import jax
from jax import Array

from solstice.compat import Params, State
from solstice_toynet._net import Net


@jax.tree_util.register_static
@dataclass(eq=False)
class ToynetModel:
    """`ToynetModel(net)`: wrap a toynet model as a `solstice.compat.Model`.

    Args:
        net: the net.

    Raises:
        TypeError: `net` is not a net of toynet.
    """

    # A checkpoint stores the repr of the adapter, and does not load if it has changed. The repr of
    # a framework's net may contain counters or values, which change, so it is left out.
    net: Any = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.net, Net):
            raise TypeError(f"ToynetModel takes a Net; it was given {self.net!r:.80}")

    def init(self, key: Array, x: Any, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`."""
        return self.net.create(key, x.shape[-1]), ()

    def forward(
        self, params: Params, state: State, x: Any, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`."""
        return self.net.apply(params, x, key=key, drop=train), state
