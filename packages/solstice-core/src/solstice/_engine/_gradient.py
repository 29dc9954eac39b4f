"""A gradient through steps that is NaN becomes an error that names the usual cause."""

from typing import Any, cast

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_NAN = (
    "the gradient through `solstice.run_steps` is NaN. The usual cause is the square root in an "
    "optimizer such as optax.adam, whose derivative is infinite at 0: write "
    "`optax.adam(rate, eps_root=1e-8)`. Otherwise a step of your own has such a derivative, or the "
    "state is NaN before. With EQX_ON_ERROR=nan in the environment, NaN is returned instead"
)


def watch_gradient(array: Array) -> Array:
    """The same array; an error in the backward pass if its gradient is NaN."""
    return _watched.bind(array) if jnp.issubdtype(array.dtype, jnp.inexact) else array


def _checked(gradient: Array, _: object) -> list[Array]:
    return [cast("Array", eqx.error_if(gradient, jnp.isnan(gradient), _NAN))]


def _same(x: Any) -> Any:
    return x


def _same_in_a_list(_: object, x: object) -> list[object]:
    return [x]


# A primitive, because `jax.custom_vjp` would forbid forward mode: it is the identity everywhere but
# in the transpose.
_watched: Any = Primitive("solstice_watch_gradient")
_watched.def_impl(_same)
_watched.def_abstract_eval(_same)
cast("Any", ad).deflinear2(_watched, _checked)
cast("Any", batching).defvectorized(_watched)
cast("Any", mlir).register_lowering(_watched, _same_in_a_list)
