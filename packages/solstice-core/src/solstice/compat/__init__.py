"""Compat: one interface to the models and optimisers of any framework.

```python
model = solstice.compat.FlaxModel(linen_module)      # name the adapter, or
model = solstice.compat.as_model(linen_module)       # choose it by the type of the object
optimizer = solstice.compat.as_optimizer(optax.adam(3e-4))
```

The adapter classes are in separate packages (`solstice-flax`, `solstice-haiku`, `solstice-stax`,
`solstice-optax`, or those of third parties), and are found through entry points. An adapter is
imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

from solstice.compat import _registry
from solstice.compat._claims import layout_claims as layout_claims
from solstice.compat._equinox import EquinoxModel
from solstice.compat._listing import AdapterInfo, adapters
from solstice.compat._listing import frameworks as frameworks
from solstice.compat._listing import list_adapters as list_adapters
from solstice.compat._load import AdapterError
from solstice.compat._load import load_layout as load_layout
from solstice.compat._lora import Lora, lora
from solstice.compat._mixed_precision import mixed_precision
from solstice.compat._norms import Norms, norms_of, track_norms
from solstice.compat._protocols import (
    Model,
    Optimizer,
    OptState,
    Params,
    State,
    call_arguments,
    call_in_evaluation,
)
from solstice.compat._registry import adapt_argument
from solstice.compat._spikes import Spikes, skip_spikes, spikes_of
from solstice.compat._spikes import num_skipped as num_skipped
from solstice.compat._wrappers import ema, freeze, skip_nonfinite

if TYPE_CHECKING:
    from solstice_flax import FlaxModel as FlaxModel
    from solstice_flax import NNXModel as NNXModel
    from solstice_haiku import HaikuModel as HaikuModel
    from solstice_optax import OptaxOptimizer as OptaxOptimizer
    from solstice_stax import StaxModel as StaxModel
    from solstice_stax import TripleOptimizer as TripleOptimizer

__all__ = [
    "AdapterError",
    "AdapterInfo",
    "EquinoxModel",
    "Lora",
    "Model",
    "Norms",
    "OptState",
    "Optimizer",
    "Params",
    "Spikes",
    "State",
    "adapt_argument",
    "adapters",
    "as_model",
    "as_optimizer",
    "call_arguments",
    "call_in_evaluation",
    "ema",
    "freeze",
    "lora",
    "mixed_precision",
    "norms_of",
    "register",
    "skip_nonfinite",
    "skip_spikes",
    "spikes_of",
    "track_norms",
]


def as_model(obj: object, **options: object) -> Model:
    """`model = solstice.compat.as_model(linen_module)`: wrap any framework's model as a `Model`.

    The type of `obj` selects the adapter. The same object always returns the same adapter, so
    Experiments that share a model share their compiled programs.

    Args:
        obj: a model of a framework with an installed adapter, or a `Model`, which is returned
            unchanged.
        **options: further arguments of the adapter's class.

    Raises:
        AdapterError: the adapter is not installed, is broken, is for another protocol version, or
            several packages claim the type.
        TypeError: `obj` is not of a known framework, or is not a model.
    """
    return _registry.adapt("model", obj, options)


def as_optimizer(obj: object, **options: object) -> Optimizer:
    """`optimizer = solstice.compat.as_optimizer(optax.adam(3e-4))`: wrap any as an `Optimizer`.

    Arguments and errors are those of `as_model`.
    """
    return _registry.adapt("optimizer", obj, options)


def register(prefix: str, adapter: type[Any]) -> None:
    """`solstice.compat.register("toynet", ToynetModel)`: add an adapter to this process.

    It is for notebooks and tests; a package declares an entry point instead. Until the process
    ends, `as_model` (or `as_optimizer`) returns `adapter(obj)` for objects whose type, or one of
    its bases, is defined in `toynet` or a submodule, and `solstice.compat.ToynetModel` exists. It
    takes precedence over installed adapters, and resolves a conflict between several.

    Args:
        prefix: the import prefix of the types; "__main__" for types defined in a notebook.
        adapter: a class with the methods of `Model` or of `Optimizer`.

    Raises:
        TypeError: `adapter` has the methods of neither protocol.
        ValueError: `prefix` is empty.
    """
    _registry.register(prefix, adapter)


# A type checker would take any name for one that exists.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> type[Any]:
        if name.startswith("_") or not name.isidentifier():  # as IPython and `inspect` ask for
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        adapter = _registry.adapter_class(name)
        globals()[name] = adapter
        return adapter

    def __dir__() -> list[str]:
        return sorted({*globals(), *_registry.adapter_names()})
