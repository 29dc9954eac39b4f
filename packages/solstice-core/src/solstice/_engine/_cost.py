"""Cost: the operations of a step, counted in its jaxpr before anything runs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from jax.extend.core import ClosedJaxpr, Jaxpr  # pyright: ignore[reportPrivateImportUsage]


@dataclass(frozen=True)
class Cost:
    """The cost of a step.

    Attributes:
        flops: an estimate of the floating-point operations: those of matrix products and
            convolutions, and one per element of every other result. A loop of unknown length
            counts once.
        has_convolution: whether the step has a convolution.
        is_known: False if the step may take longer than `flops` says, because it has a loop of
            unknown length, a call of the host or a matrix decomposition.
    """

    flops: int
    has_convolution: bool
    is_known: bool = True


_UNKNOWN = (
    *("while", "callback", "ffi_call", "custom_call"),
    *("eig", "svd", "lu", "qr", "schur", "cholesky", "householder", "triangular_solve"),
)
"""Prefixes and suffixes of operations whose cost does not follow from the size of the result."""


def cost_of(jaxpr: Any) -> Cost:
    """The cost of a jaxpr, including the jaxprs that it calls."""
    flops, has_convolution, is_known = 0, False, True
    for equation in jaxpr.eqns:
        inner = [cost_of(part) for part in inner_jaxprs(equation.params)]
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        flops += repeats * sum(cost.flops for cost in inner) if inner else _flops(equation)
        has_convolution |= equation.primitive.name == "conv_general_dilated"
        has_convolution |= any(cost.has_convolution for cost in inner)
        is_known &= all(cost.is_known for cost in inner)
        is_known &= not equation.primitive.name.startswith(_UNKNOWN)
        is_known &= not equation.primitive.name.endswith(_UNKNOWN)  # such as `pure_callback`
    return Cost(flops, has_convolution, is_known)


def _flops(equation: Any) -> int:
    size = sum(size_of(out.aval) for out in equation.outvars)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        # Each contracted element costs a multiplication and an addition.
        return 2 * size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        # An element of the result is a product with the kernel of one output feature.
        features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * size * size_of(kernel) // max(features, 1)
    return size


def unchanged(jaxpr: Any, count: int) -> tuple[int, ...]:
    """The indices of the first `count` results that are the input in their place."""
    pairs = zip(jaxpr.invars[:count], _sources(jaxpr)[:count], strict=True)
    return tuple(i for i, (variable, source) in enumerate(pairs) if variable is source)


def _sources(jaxpr: Any) -> list[Any]:
    """For each result of a jaxpr, the input that is returned there, or another value."""
    inputs: dict[int, Any] = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("jit", "pjit"):
            inner = getattr(equation.params["jaxpr"], "jaxpr", equation.params["jaxpr"])
            places = {id(variable): i for i, variable in enumerate(inner.invars)}
            for out, source in zip(equation.outvars, _sources(inner), strict=True):
                if id(source) in places:
                    given = equation.invars[places[id(source)]]
                    inputs[id(out)] = inputs.get(id(given), given)
    return [inputs.get(id(variable), variable) for variable in jaxpr.outvars]


def used(jaxpr: Any, results: Sequence[bool] | None = None) -> list[bool]:
    """For each input of a jaxpr, whether its results depend on it.

    Args:
        jaxpr: the jaxpr.
        results: which of its results count; all by default.
    """
    wanted = [True] * len(jaxpr.outvars) if results is None else results
    live = {id(out) for out, is_wanted in zip(jaxpr.outvars, wanted, strict=True) if is_wanted}
    for equation in reversed(jaxpr.eqns):
        outs = [id(out) in live for out in equation.outvars]
        if any(outs):
            needed = [True] * len(equation.invars)
            if equation.primitive.name in ("jit", "pjit"):
                needed = used(next(inner_jaxprs(equation.params)), outs)
            pairs = zip(equation.invars, needed, strict=True)
            live |= {id(given) for given, is_needed in pairs if is_needed}
    return [id(variable) in live for variable in jaxpr.invars]


def size_of(aval: Any) -> int:
    """The number of elements of an array."""
    return math.prod(getattr(aval, "shape", ()))


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an operation calls or repeats, from its parameters."""
    for value in params.values():
        for part in cast("Any", value if isinstance(value, tuple | list) else (value,)):
            if isinstance(part, Jaxpr | ClosedJaxpr):
                yield getattr(part, "jaxpr", part)
