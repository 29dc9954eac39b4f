"""TripleOptimizer: an optimizer of `jax.example_libraries` as a Solstice optimizer."""

from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp

from solstice.compat import OptState, Params


@jax.tree_util.register_static
@dataclass(eq=False)
class TripleOptimizer:
    """`TripleOptimizer(optimizers.adam(1e-3))`: wrap an `(init, update, get_params)` triple.

    The triple has its own copy of the Params in its state, and updates this copy. So the argument
    `params` of `step` is ignored: a change of the Params between steps has no effect. Schedules
    receive the number of steps.

    Args:
        triple: the result of a function of `jax.example_libraries.optimizers`.

    Raises:
        TypeError: `triple` is not three functions.
    """

    triple: Any

    def __post_init__(self) -> None:
        triple: Any = self.triple
        parts = cast("tuple[Any, ...]", triple) if isinstance(triple, tuple) else ()
        if len(parts) != 3 or not all(callable(part) for part in parts):
            raise TypeError(
                f"TripleOptimizer takes an (init, update, get_params) triple, as in "
                f"`TripleOptimizer(optimizers.adam(1e-3))`; it was given {triple!r:.80}"
            )

    def init(self, params: Params, /) -> OptState:
        """`opt_state = optimizer.init(params)`: the number of steps, and the triple's state."""
        init, _, _ = self.triple
        return jnp.zeros((), jnp.int32), init(params)

    def step(
        self, grads: Params, state: OptState, params: Params, /, **extra: Any
    ) -> tuple[Params, OptState]:
        """`params, opt_state = optimizer.step(grads, opt_state, params)`."""
        del params, extra
        _, update, get_params = self.triple
        count, inner = state
        inner = update(count, grads, inner)
        return get_params(inner), (count + 1, inner)

    def eval_params(self, state: OptState, params: Params, /) -> Params:
        """`params = optimizer.eval_params(opt_state, params)`: the same Params."""
        del state
        return params
