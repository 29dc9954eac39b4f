"""Mixed precision: a model that computes in another dtype than its params are kept in."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._types import Batch
from solstice.compat._protocols import Model, Params, State
from solstice.compat._registry import adapt_argument

_T = TypeVar("_T")

_EXAMPLE = '"params=float32,compute=bfloat16,output=float32"'

_FIELDS = {"p": "params", "c": "compute", "o": "output"}

_DTYPES = ("bfloat16", "float16", "float32", "float64")

_SHORT: dict[str, str] = {
    "bf16": "bfloat16",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "full": "float32",
}


@runtime_checkable
class Policy(Protocol):
    """Functions that cast the floating-point leaves of a tree, as a `jmp.Policy` has them."""

    def cast_to_param(self, x: _T) -> _T:
        """The dtype that params are kept in."""
        ...

    def cast_to_compute(self, x: _T) -> _T:
        """The dtype that the model computes in."""
        ...

    def cast_to_output(self, x: _T) -> _T:
        """The dtype of the model's outputs."""
        ...


def mixed_precision(model: object, policy: object) -> Model:
    """`model = solstice.compat.mixed_precision(net, "params=float32,compute=bfloat16")`.

    Params are kept in one dtype, and the model computes in another: inputs and params are cast
    before each call, outputs after it. Only floating-point arrays are cast. The model's state
    keeps its dtypes.

    float16 needs its gradients scaled, which is not done here: choose bfloat16.

    Args:
        model: a `Model`, or a model that has an adapter.
        policy: a text of the fields params, compute and output, or p, c and o. Params are float32
            if left out, compute follows params, and output follows compute. A dtype alone is that
            of all three. The dtypes are bfloat16, float16, float32 and float64, or bf16, f16, f32,
            f64, full (float32) and half (bfloat16 on a TPU, float16 elsewhere). Or an object with
            the methods `cast_to_param`, `cast_to_compute` and `cast_to_output`, such as a
            `jmp.Policy`.

    Raises:
        ValueError: the text has an unknown field or dtype, or a field twice.
        TypeError: `policy` is neither a text nor an object with the three methods.
        TypeError, AdapterError: there is no adapter for `model`.
    """
    if isinstance(policy, str):
        policy = _read(policy)
    # A class has the methods too.
    if not isinstance(policy, Policy) or isinstance(policy, type):
        raise TypeError(
            f"policy must be a text or an object with the methods cast_to_param, cast_to_compute "
            f"and cast_to_output; it is {policy!r:.60}. Write `mixed_precision(model, {_EXAMPLE})`"
        )
    return _Casting(adapt_argument("model", "model", model), policy)


def _read(text: str) -> "_Dtypes":
    """A policy from its text, by the rules of `jmp.get_policy`."""
    if "=" not in text:
        dtype = _dtype(text, "all fields", text)
        return _Dtypes(dtype, dtype, dtype)
    given: dict[str, np.dtype[Any]] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        field = _FIELDS.get(name, name)
        if field not in _FIELDS.values():
            raise _refusal(
                text, f"has the field {name!r}, and the fields are params, compute and output"
            )
        if field in given:
            raise _refusal(text, f"has the field {field!r} twice")
        given[field] = _dtype(text, repr(field), value)
    params = given.get("params", jnp.dtype("float32"))
    compute = given.get("compute", params)
    return _Dtypes(params, compute, given.get("output", compute))


def _dtype(text: str, field: str, value: str) -> np.dtype[Any]:
    name = _SHORT.get(value.strip(), value.strip())
    if name == "half":
        name = "bfloat16" if jax.default_backend() == "tpu" else "float16"
    if name not in _DTYPES:
        names = ", ".join((*_DTYPES, *_SHORT))
        raise _refusal(text, f"gives {field} the dtype {value!r}, and it must be {names} or half")
    return jnp.dtype(name)


def _refusal(text: str, problem: str) -> ValueError:
    return ValueError(f"the policy {text!r} {problem}. Write {_EXAMPLE}")


@dataclass(frozen=True)
class _Dtypes:
    """The `Policy` of a text."""

    params: np.dtype[Any]
    compute: np.dtype[Any]
    output: np.dtype[Any]

    def cast_to_param(self, x: _T) -> _T:
        """The dtype that params are kept in."""
        return _tree.floats_as(self.params, x)

    def cast_to_compute(self, x: _T) -> _T:
        """The dtype that the model computes in."""
        return _tree.floats_as(self.compute, x)

    def cast_to_output(self, x: _T) -> _T:
        """The dtype of the model's outputs."""
        return _tree.floats_as(self.output, x)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Casting:
    """A model that computes in another dtype than its params are kept in."""

    model: Model
    policy: Policy

    def init(self, key: Array, x: Batch, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`."""
        params, state = self.model.init(key, x)
        return self.policy.cast_to_param(params), state

    def forward(
        self, params: Params, state: State, x: Batch, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`."""
        params, x = self.policy.cast_to_compute((params, x))
        outputs, new_state = self.model.forward(params, state, x, train=train, key=key)
        # The engine refuses a state whose dtypes change.
        return self.policy.cast_to_output(outputs), _tree.map(_tree.in_dtype_of, new_state, state)
