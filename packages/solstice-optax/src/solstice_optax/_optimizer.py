"""Any Optax gradient transformation as a Solstice optimizer."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax import contrib

from solstice.compat import OptState, Params


@jax.tree_util.register_static
@dataclass(eq=False)
class OptaxOptimizer:
    """`OptaxOptimizer(optax.adam(3e-4))`: an Optax optimiser as a `solstice.compat.Optimizer`.

    Transformations with extra arguments get those that they take: `value`, `grad` and `value_fn`
    (L-BFGS, Polyak, `reduce_on_plateau`), `grad_fn` (opaque `contrib.sam`), and what `step` is
    given beside. Schedule-free optimisers, also within a chain, a mask or
    `optax.multi_transform`, evaluate at their averaged point.

    Args:
        tx: an `optax.GradientTransformation`, or an `optax.MultiSteps`.

    Raises:
        TypeError: `tx` is neither.
    """

    tx: Any
    _tx: optax.GradientTransformationExtraArgs = field(init=False, repr=False)
    _takes: frozenset[str] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tx = self.tx
        if isinstance(tx, optax.MultiSteps):
            tx = tx.gradient_transformation()
        if not isinstance(tx, optax.GradientTransformation):
            raise TypeError(
                f"OptaxOptimizer takes an optax.GradientTransformation, as in "
                f"`OptaxOptimizer(optax.adam(3e-4))`; it was given {tx!r:.80}"
            )
        self._takes = _extra_arguments(tx)
        self._tx = optax.with_extra_args_support(tx)

    def init(self, params: Params, /) -> OptState:
        """`opt_state = optimizer.init(params)`."""
        return self._tx.init(params)

    def step(
        self,
        grads: Params,
        state: OptState,
        params: Params,
        /,
        *,
        value: Array | None = None,
        value_fn: Callable[[Params], Array] | None = None,
        **extra: Any,
    ) -> tuple[Params, OptState]:
        """`params, opt_state = optimizer.step(grads, opt_state, params)`."""
        grad_fn = None if value_fn is None else _gradient_at_a_step(value_fn)
        named = {"value": value, "value_fn": value_fn, "grad": grads, "grad_fn": grad_fn, **extra}
        arguments = {
            name: argument
            for name, argument in named.items()
            if argument is not None and (self._takes is None or name in self._takes)
        }
        updates, state = self._update(grads, state, params, arguments)
        return optax.apply_updates(params, updates), state

    def _update(self, grads: Params, state: OptState, params: Params, arguments: Any) -> Any:
        """The update, without the arguments that some part of it turns out not to take."""
        try:
            return self._tx.update(grads, state, params, **arguments)
        except TypeError as error:
            refused = _refused(error) & set(arguments)
            if not refused:
                raise
        fewer = {name: value for name, value in arguments.items() if name not in refused}
        return self._update(grads, state, params, fewer)

    def eval_params(self, state: OptState, params: Params, /) -> Params:
        """`params = optimizer.eval_params(opt_state, params)`."""

        def is_schedule_free(node: Any) -> bool:
            return isinstance(node, contrib.ScheduleFreeState)

        for node in jax.tree.leaves(state, is_leaf=is_schedule_free):
            if is_schedule_free(node):
                params = _averaged_point(node, params)
        return params

    def has_updated(self, before: OptState, after: OptState, /) -> Any:
        """`optimizer.has_updated(before, after)`: False in a step that only gathers gradients.

        So it is between the updates of `optax.MultiSteps`, and where `optax.apply_if_finite` or
        `optax.conditionally_mask` leaves one out.

        Returns:
            True where every step is an update, else a boolean scalar.
        """
        within = _conditional(before), _conditional(after)
        moved = [_has_moved(*pair) for pair in zip(*within, strict=True)]
        return jnp.stack(moved).any() if moved else True


_Conditional: TypeAlias = (
    optax.MultiStepsState | optax.ApplyIfFiniteState | optax.ConditionallyMaskState
)
"""The states of what does not update in every step."""


def _conditional(state: OptState) -> list[Any]:
    """Those in a state, the outermost alone."""

    def is_one(node: Any) -> bool:
        return isinstance(node, _Conditional)

    return [node for node in jax.tree.leaves(state, is_leaf=is_one) if is_one(node)]


def _has_moved(before: Any, after: Any) -> Any:
    """Whether it has updated, and what it wraps too."""
    if isinstance(after, optax.ConditionallyMaskState):
        return jnp.asarray(False)  # its state does not say
    if isinstance(after, optax.ApplyIfFiniteState):
        moved, within = after.last_finite, (before.inner_state, after.inner_state)
    else:
        moved = before.gradient_step != after.gradient_step
        within = before.inner_opt_state, after.inner_opt_state
    for pair in zip(*map(_conditional, within), strict=True):
        moved &= _has_moved(*pair)
    return moved


def _averaged_point(node: contrib.ScheduleFreeState, params: Params) -> Params:
    """The params to evaluate with, of those that this optimiser sees; the others stay."""

    def is_masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    def seen(own: Any, param: Any) -> Any:
        return own if is_masked(own) else param

    def chosen(point: Any, param: Any) -> Any:
        return param if is_masked(point) else point

    part = jax.tree.map(seen, node.z, params, is_leaf=is_masked)
    point = contrib.schedule_free_eval_params(node, part)
    return jax.tree.map(chosen, point, params, is_leaf=is_masked)


def _refused(error: TypeError) -> set[str]:
    """The names in `unexpected keyword argument 'a'`, of Python and of Optax's line search."""
    message = str(error)
    is_it = "nexpected keyword argument" in message
    return set(re.findall(r"'(\w+)'", message)) if is_it else set()


def _gradient_at_a_step(value_fn: Callable[[Params], Array]) -> Callable[[Params, Any], Params]:
    """What SAM takes: it gives the number of its adversarial step too."""

    def grad_fn(params: Params, step: Any) -> Params:
        del step
        return cast("Any", jax.grad(value_fn)(params))

    return grad_fn


def _extra_arguments(tx: optax.GradientTransformation) -> frozenset[str] | None:
    """The extra arguments that its update names; None if it takes any, as a chain does."""
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        return frozenset()
    parameters = inspect.signature(cast("Callable[..., Any]", tx.update)).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)
