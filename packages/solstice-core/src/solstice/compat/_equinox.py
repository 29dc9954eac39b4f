"""EquinoxModel: an Equinox module as a Solstice model."""

import inspect
from dataclasses import dataclass, field
from typing import Any, cast

import equinox as eqx
import jax
from jax import Array

from solstice import _tree
from solstice._arguments import switch
from solstice._types import Batch
from solstice.compat._protocols import Params, State, call_arguments, call_in_evaluation


@jax.tree_util.register_static
@dataclass(eq=False)
class EquinoxModel:
    """`EquinoxModel(eqx.nn.MLP(784, 10, 64, 2, key=key))`: wrap an Equinox module as a `Model`.

    The module takes a single example, as is usual in Equinox; `forward` maps it over the batch.
    Its inexact arrays are the Params. Its integer and boolean arrays, rates of Dropout that are
    arrays, and the `eqx.nn.State` of layers such as BatchNorm are the State. `train=False` sets
    inference mode. A `__call__` with a parameter `key` receives a different key for each example.
    In evaluation these keys derive from `jax.random.key(0)`, and only if the call without a key
    fails.

    Args:
        model: a module; the pair of `eqx.nn.make_with_state(Net)(key=key)`; or a function from a
            PRNG key to either. Only a function creates new values for each key; a module or a pair
            ignores the key of `init`.
        axis_name: the name of the batch axis; give the same name to BatchNorm.
        unpack: whether `x` has several inputs: a tuple becomes positional arguments, a dict keyword
            arguments. By default `x` is a single argument.

    Raises:
        TypeError: `model` is none of these.
        ValueError: `unpack` is not True or False.
    """

    model: object
    axis_name: str = "batch"
    unpack: bool = False
    _static: tuple[Any, Any] = field(init=False, repr=False)
    _takes_key: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.unpack = switch("unpack", self.unpack)
        key = jax.eval_shape(lambda: jax.random.key(0))  # nothing runs on a device
        # Shapes alone, because a function may make a large model.
        shapes = cast("Any", eqx.filter_eval_shape(self._values, key))
        module, layers = _pair(shapes)
        if not isinstance(module, eqx.Module) or not callable(module):
            raise TypeError(
                f"EquinoxModel takes a callable equinox.Module, a (module, state) pair, or a "
                f"function from a key to either; it was given {self.model!r:.80}"
            )
        if layers is None and _has_state(module):
            raise TypeError(
                f"{type(module).__name__} has layers with a state, such as BatchNorm: write "
                f"`EquinoxModel(eqx.nn.make_with_state({type(module).__name__}))`, or give the "
                f"pair that it returns"
            )
        self._static = eqx.filter((module, layers), _is_array, inverse=True)
        call = cast("Any", module.__call__)
        self._takes_key = "key" in inspect.signature(call).parameters

    def init(self, key: Array, x: Batch, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`: the module's values; `x` is ignored."""
        del x
        module, layers = _pair(self._values(key))
        params, rest = cast("Any", eqx.partition(module, _trained(module)))
        return params, (_arrays(rest), _arrays(layers))

    def forward(
        self, params: Params, state: State, x: Batch, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`."""
        buffers, layers = state
        static_module, static_layers = self._static
        module = eqx.combine(params, buffers, static_module)
        module = cast("Any", eqx.nn.inference_mode(module, value=not train))
        layers = eqx.combine(layers, static_layers)

        def mapped(key: Array | None) -> tuple[Any, Any]:
            keys = None
            if self._takes_key and key is not None:
                keys = jax.random.split(key, jax.tree.leaves(x)[0].shape[0])
            # One state for the batch: BatchNorm reduces over `axis_name`, so it is not mapped.
            return jax.vmap(one, out_axes=(0, None), axis_name=self.axis_name)(x, keys)

        def one(example: object, key: Array | None) -> tuple[Any, Any]:
            inputs, options = call_arguments(example, unpack=self.unpack)
            if key is not None:
                options["key"] = key
            if layers is None:
                return module(*inputs, **options), None
            return module(*inputs, layers, **options)

        if train:
            outputs, layers = mapped(key)
            return outputs, (buffers, _arrays(layers))
        return call_in_evaluation(mapped, key)[0], state

    def _values(self, key: Array) -> object:
        if isinstance(self.model, eqx.Module | tuple):
            return cast("object", self.model)
        return self.model(key) if callable(self.model) else None


def _pair(values: object) -> tuple[Any, Any]:
    """The module and its `eqx.nn.State`, None if there is none; (None, None) of a longer tuple."""
    if not isinstance(values, tuple):
        return values, None
    pair = cast("tuple[Any, Any]", values)
    return pair if len(pair) == 2 else (None, None)


def _trained(module: object) -> Any:
    """Which leaves are Params: the rate of Dropout is not, though it may be an array."""

    def is_dropout(node: object) -> bool:
        return isinstance(node, eqx.nn.Dropout)

    def of(node: object) -> bool:
        return eqx.is_inexact_array(node) and not is_dropout(node)

    return jax.tree.map(of, module, is_leaf=is_dropout)


def _has_state(module: object) -> bool:
    return bool(_tree.nodes_by_slashes(module, lambda node: isinstance(node, eqx.nn.StateIndex)))


def _arrays(tree: object) -> State:
    return cast("Any", eqx.filter(tree, eqx.is_array))


def _is_array(leaf: object) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
