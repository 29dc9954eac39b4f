"""Detection of arrays that a loss depends on, but has no gradient in."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from solstice import _tree

_CALLS = ("jit", "pjit", "closed_call")
"""Primitives with one input for each input of their inner jaxpr, so the search can enter them."""


def constants_of(function: Callable[[Any], Any], argument: Any, arrays: Any) -> list[str]:
    """The paths of those `arrays` on which `function(argument)` depends with a gradient.

    Args:
        function: returns a scalar; it is traced once more.
        argument: the tree in which the gradient is taken.
        arrays: a tree of arrays that the function may have closed over.

    Returns:
        The paths. Arrays that are not traced are ignored, and so are those used only inside
        `jax.lax.stop_gradient`.
    """
    # By identity, because `==` of tracers is another operation.
    paths = {id(leaf): path for path, leaf in _tree.leaves_by_path(arrays) if _is_traced(leaf)}
    if not paths:
        return []
    closed: Any = jax.make_jaxpr(function)(argument)
    needed = _needed(closed.jaxpr, closed.jaxpr.outvars)
    pairs = zip(closed.jaxpr.constvars, closed.consts, strict=True)
    return [paths[id(x)] for var, x in pairs if id(var) in needed and id(x) in paths]


def _is_traced(leaf: Any) -> bool:
    return isinstance(leaf, Tracer)


def _needed(jaxpr: Any, outputs: Iterable[Any]) -> set[int]:
    """The ids of the variables through which a gradient of the outputs flows."""
    needed = {id(var) for var in outputs if _has_gradient(var)}
    # Backwards, because an equation follows those that make its inputs.
    for equation in reversed(jaxpr.eqns):
        wanted = [id(var) in needed for var in equation.outvars]
        if any(wanted) and equation.primitive.name != "stop_gradient":
            needed |= {id(var) for var in _inputs(equation, wanted) if _has_gradient(var)}
    return needed


def _inputs(equation: Any, wanted: list[bool]) -> list[Any]:
    """The inputs on which the wanted outputs of an equation depend.

    For a primitive that is not in `_CALLS` these are all inputs, which may be too many.
    """
    if equation.primitive.name not in _CALLS:
        return equation.invars
    within = equation.params["jaxpr"].jaxpr
    outputs = [var for var, is_one in zip(within.outvars, wanted, strict=True) if is_one]
    needed = _needed(within, outputs)
    pairs = zip(equation.invars, within.invars, strict=True)
    return [outer for outer, inner in pairs if id(inner) in needed]


def _has_gradient(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)
