"""The Solstice adapter for Penzai: `solstice.compat.PenzaiModel`."""

from dataclasses import dataclass, field
from typing import Any

import jax
from penzai import pz

__all__ = ["PenzaiModel"]


@jax.tree_util.register_static
@dataclass(eq=False)
class PenzaiModel:
    """`PenzaiModel(model)`: a Penzai layer as a `solstice.compat.Model`.

    Args:
        model: a `pz.nn.Layer` of named arrays, with a batch axis "batch"; or a function from a PRNG
            key to one, which makes new values for each key.
        input_axes: names of the axes of the input after the batch.
    """

    model: Any
    input_axes: tuple[str, ...] = ("features",)
    _slots: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._slots, _ = pz.unbind_variables(self._made(jax.random.key(0)), freeze=True)

    def init(self, key, x, /):
        _, params = pz.unbind_params(self._made(key), freeze=True)
        _, state = pz.unbind_state_vars(self._made(key), freeze=True)
        return params, state

    def forward(self, params, state, x, /, *, train, key=None):
        variables = [value.unfreeze_as_copy() for value in state]
        model = self._slots
        if not train:
            dropout = model.select().at_instances_of(pz.nn.StochasticDropout)
            model = dropout.apply(lambda layer: layer.disable())
        model = pz.bind_variables(model, [*params, *variables], unfreeze_as_copy=True)
        stream = {} if key is None else {"random_stream": pz.RandomStream.from_base_key(key)}
        out = model(pz.nx.wrap(x).tag("batch", *self.input_axes), **stream)
        names = [name for name in out.named_shape if name != "batch"]
        new = tuple(variable.freeze() for variable in variables) if train else state
        return out.untag("batch", *names).unwrap(), new

    def _made(self, key):
        return self.model if isinstance(self.model, pz.nn.Layer) else self.model(key)
