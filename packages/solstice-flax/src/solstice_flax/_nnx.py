"""NNXModel: a Flax NNX module as a Solstice model."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from solstice.compat import Params, State, call_arguments, call_in_evaluation
from solstice_flax._flags import training_flags


@jax.tree_util.register_static
@dataclass(eq=False)
class NNXModel:
    """`NNXModel(lambda rngs: MLP(rngs=rngs))`: wrap an NNX module as a `solstice.compat.Model`.

    Its `nnx.Param` variables are the Params; all other variables, such as the statistics of
    BatchNorm, are the State. `forward` calls `module.train()` or `module.eval()`, and sets the
    flags of `__call__` that `FlaxModel` knows.

    All random streams derive from the key of `forward`: the i-th leaf of the module's streams gets
    `fold_in(key, i)`, and a parameter `rngs` of `__call__` gets `nnx.Rngs` of a further key.
    Evaluation uses `jax.random.key(0)`, so the same inputs give the same outputs; there, `rngs` is
    omitted if it has a default and the module works without it.

    Args:
        module: an `nnx.Module`, or a function from `nnx.Rngs` to one. Only a function creates new
            values for each key; a module ignores the key of `init`, and is not changed.
        train_arg: the name of a flag that is True in training, if it is not one that `FlaxModel`
            knows.
        unpack: whether `x` has several inputs: a tuple becomes positional arguments, a dict keyword
            arguments. By default `x` is a single argument.

    Raises:
        TypeError: `module` is neither, or its `__call__` has no parameter `train_arg`.
    """

    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module]
    train_arg: str | None = None
    unpack: bool = False
    _graph: Any = field(init=False, repr=False)
    _rng_shapes: Any = field(init=False, repr=False)
    _flags: dict[str, bool] = field(init=False, repr=False)
    _takes_rngs: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        made: list[Any] = []

        def shapes(key: Array) -> Any:
            module = self._make(key)
            graph, _, rngs, _ = _split(module)
            made.extend([graph, module])
            return nnx.to_pure_dict(rngs)

        self._rng_shapes = jax.eval_shape(shapes, jax.random.key(0))
        self._graph, module = made
        self._flags = training_flags(module, self.train_arg)
        self._takes_rngs = "rngs" in inspect.signature(module.__call__).parameters

    def init(self, key: Array, x: Any, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`: the module's values; `x` is ignored."""
        del x
        _, params, _, state = _split(self._make(_typed(key)))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def forward(
        self, params: Params, state: State, x: Any, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`.

        Raises:
            ValueError: the module has random streams, and `train=True` has no key.
        """
        if not train:
            call = partial(self._call, params, state, x, False)
            return call_in_evaluation(call, key)[0], state
        if key is None and (self._rng_shapes or self._takes_rngs):
            raise ValueError(
                "this NNX module has random streams: give `forward(..., train=True, key=key)`"
            )
        outputs, module = self._call(params, state, x, True, key)
        *_, new = _split(module)
        # The variables of `sow` are outputs, and would grow from step to step.
        return outputs, _only_keys_of(state, nnx.to_pure_dict(new))

    def _call(
        self, params: Params, state: State, x: Any, train: bool, key: Array | None
    ) -> tuple[Any, nnx.Module]:
        """The outputs, and the module after the call; without a key, `rngs` is omitted."""
        inputs, options = call_arguments(x, unpack=self.unpack)
        options.update({name: value is train for name, value in self._flags.items()})
        typed = jax.random.key(0) if key is None else _typed(key)
        module: Any = nnx.merge(self._graph, params, self._rngs(typed), state)
        if self._takes_rngs and key is not None:
            # The leaves of the module's own streams use the numbers below `own`.
            own = len(jax.tree.leaves(self._rng_shapes))
            options["rngs"] = nnx.Rngs(jax.random.fold_in(typed, own) if own else typed)
        module.train() if train else module.eval()
        return module(*inputs, **options), module

    def _make(self, key: Array) -> nnx.Module:
        made: Any = self.module
        if not isinstance(made, nnx.Module) and callable(made):
            made = cast("Callable[[nnx.Rngs], Any]", made)(nnx.Rngs(key))
        if not isinstance(made, nnx.Module):
            raise TypeError(
                f"NNXModel takes a flax.nnx.Module, or a function from nnx.Rngs to one, as in "
                f"`NNXModel(lambda rngs: MLP(rngs=rngs))`; it was given {self.module!r:.80}"
            )
        made = cast("Any", nnx.clone(made))  # the user's module must not change
        nnx.pop(made, nnx.Intermediate)
        return made

    def _rngs(self, key: Array) -> Any:
        """Fresh random streams: the i-th is seeded with `fold_in(key, i)`, and counts from 0."""
        shapes: list[Any] = jax.tree.leaves(self._rng_shapes)
        leaves = [_stream_leaf(jax.random.fold_in(key, i), s) for i, s in enumerate(shapes)]
        return jax.tree.unflatten(cast("Any", jax.tree.structure(self._rng_shapes)), leaves)


def _only_keys_of(like: Any, tree: Any) -> Any:
    if not isinstance(like, dict):
        return tree
    keys = cast("dict[Any, Any]", like)
    return {key: _only_keys_of(keys[key], tree[key]) for key in keys}


def _split(module: nnx.Module) -> tuple[Any, Any, Any, Any]:
    return cast("Any", nnx.split(module, nnx.Param, nnx.RngState, ...))


def _typed(key: Array) -> Array:
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return cast("Any", jax.random.wrap_key_data(key))


def _stream_leaf(key: Array, like: Any) -> Array:
    if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jnp.zeros(like.shape, like.dtype)  # the stream's count
    return jax.random.split(key, like.shape) if like.shape else key
