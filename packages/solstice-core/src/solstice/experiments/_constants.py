"""Notice traced arrays that a loss is a function of, and that are constants to its gradient."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from solstice import _tree

_CALLS = ("jit", "pjit", "closed_call")
"""Primitives whose inputs are those of their jaxpr, one by one."""


def constants_of(function: Callable[[Any], Any], argument: Any, arrays: Any) -> list[str]:
    """Which of `arrays` the value of `function(argument)` has a gradient in, beside `argument`.

    Args:
        function: to be traced once more; its value is a scalar.
        argument: what a gradient is taken in.
        arrays: a tree of what the function may have closed over.

    Returns:
        The paths of such arrays. Those that are not traced are not looked at, nor what is within
        `jax.lax.stop_gradient`.
    """
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
    """The ids of the variables that the outputs have a gradient in."""
    needed = {id(var) for var in outputs if _has_gradient(var)}
    for equation in reversed(jaxpr.eqns):
        wanted = [id(var) in needed for var in equation.outvars]
        if any(wanted) and equation.primitive.name != "stop_gradient":
            needed |= {id(var) for var in _inputs(equation, wanted) if _has_gradient(var)}
    return needed


def _inputs(equation: Any, wanted: list[bool]) -> list[Any]:
    """What the wanted outputs of an equation are a function of; all of it, if not known better."""
    if equation.primitive.name not in _CALLS:
        return equation.invars
    within = equation.params["jaxpr"].jaxpr
    outputs = [var for var, is_one in zip(within.outvars, wanted, strict=True) if is_one]
    needed = _needed(within, outputs)
    pairs = zip(equation.invars, within.invars, strict=True)
    return [outer for outer, inner in pairs if id(inner) in needed]


def _has_gradient(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)
