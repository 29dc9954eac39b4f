"""`solstice.compat`: one interface to models and optimisers of any framework.

```python
model = solstice.compat.FlaxModel(linen_module)      # by name, or
model = solstice.compat.as_model(linen_module)       # by the type of the object
optimizer = solstice.compat.as_optimizer(optax.adam(3e-4))
```

The adapter classes live in packages of their own (`solstice-flax`, `solstice-haiku`,
`solstice-stax`, `solstice-optax`, or a third party's), and are found through entry points. None
is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

from solstice.compat import _registry
from solstice.compat._equinox import EquinoxModel
from solstice.compat._listing import AdapterInfo, adapters
from solstice.compat._load import AdapterError
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
    "Model",
    "Norms",
    "OptState",
    "Optimizer",
    "Params",
    "State",
    "adapters",
    "as_model",
    "as_optimizer",
    "call_arguments",
    "call_in_evaluation",
    "ema",
    "freeze",
    "mixed_precision",
    "norms_of",
    "register",
    "skip_nonfinite",
    "track_norms",
]


def as_model(obj: Any, **options: Any) -> Model:
    """`model = solstice.compat.as_model(linen_module)`: any framework's model as a `Model`.

    The adapter is chosen by the type of `obj`. The same object gives the same adapter, so that
    Experiments which share a model share a compilation.

    Args:
        obj: a model of an installed adapter's framework, or a `Model`, which is returned as it is.
        **options: what the adapter's class takes beside the object.

    Raises:
        AdapterError: the adapter is not installed, broken, claimed twice, or of another version.
        TypeError: `obj` is of no known framework, or no model.
    """
    return _registry.adapt("model", obj, options)


def as_optimizer(obj: Any, **options: Any) -> Optimizer:
    """`optimizer = solstice.compat.as_optimizer(optax.adam(3e-4))`: as an `Optimizer`.

    Args and errors are those of `as_model`, for optimisers.
    """
    return _registry.adapt("optimizer", obj, options)


def register(prefix: str, adapter: Any) -> None:
    """`solstice.compat.register("toynet", ToynetModel)`: make an adapter known here and now.

    For notebooks and tests: a package declares an entry point instead. Until the process ends,
    `as_model` gives `adapter(obj)` for objects whose type, or a base of it, is defined in
    `toynet` or below (`as_optimizer` does, for an adapter of optimisers), and
    `solstice.compat.ToynetModel` is there. It goes before what is installed, and settles which of
    several it is.

    Args:
        prefix: import prefix of the types; "__main__" for those of a notebook.
        adapter: a class whose instances are a `Model` or an `Optimizer`.

    Raises:
        TypeError: `adapter` has the methods of neither protocol.
    """
    _registry.register(prefix, adapter)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name.startswith("_") or not name.isidentifier():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        adapter = _registry.adapter_class(name)
        globals()[name] = adapter
        return adapter

    def __dir__() -> list[str]:
        return sorted({*globals(), *_registry.adapter_names()})
