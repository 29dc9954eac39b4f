"""How XLA compiles, as far as the memory of a step depends on it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Compiler:
    """How XLA compiles, where its versions differ.

    Attributes:
        library: whether reductions go to a library of kernels, which reads operands from memory;
            fused loops then write over an operand that ends with them, too.
        recomputes: whether `jax.checkpoint` computes anew; if not, what it does is found to have
            been done.
    """

    library: bool
    recomputes: bool


@lru_cache(maxsize=1)
def compiler() -> Compiler:
    """XLA as it is installed: it is asked by compiling two functions of a line each."""
    x = jax.ShapeDtypeStruct((512, 512), "float32")
    sums, twice = (cast("Any", jax.jit(f)).lower(x).compile() for f in (_sums, _twice))
    return Compiler("kind=kCustom" in sums.as_text(), twice.as_text().count(" tanh(") > 1)


def _sums(x: Any) -> Any:
    return (x * x).sum(-1)


def _twice(x: Any) -> Any:
    return jnp.tanh(x), jnp.tanh(jax.lax.optimization_barrier(x))
