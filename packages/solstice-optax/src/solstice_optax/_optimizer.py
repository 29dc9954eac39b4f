"""OptaxOptimizer: an Optax gradient transformation as a Solstice optimizer."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax import contrib

from solstice.compat import OptState, Params


@jax.tree_util.register_static
@dataclass(eq=False)
class OptaxOptimizer:
    """`OptaxOptimizer(optax.adam(3e-4))`: wrap an Optax optimiser as a `solstice.compat.Optimizer`.

    Transformations with extra arguments, also inside `optax.MultiSteps`, receive those that they
    accept: `value`, `grad` and `value_fn` (L-BFGS, Polyak, `reduce_on_plateau`), `obj_fn`
    (`contrib.sophia`), `grad_fn` (opaque `contrib.sam`), and further arguments of `step`.
    Schedule-free optimisers, also inside a chain, a mask or `optax.multi_transform`, evaluate at
    their averaged point, and `optax.lookahead` at its slow params, which are in its state.

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
            # Its `gradient_transformation()` does not declare extra arguments, so Optax drops them.
            tx = optax.GradientTransformationExtraArgs(tx.init, cast("Any", tx.update))
        if not isinstance(tx, optax.GradientTransformation):
            raise TypeError(
                f"OptaxOptimizer takes an optax.GradientTransformation, as in "
                f"`OptaxOptimizer(optax.adam(3e-4))`; it was given {tx!r:.80}"
            )
        self._takes = _extra_arguments(tx)
        self._tx = optax.with_extra_args_support(tx)

    def init(self, params: Params, /) -> OptState:
        """`opt_state = optimizer.init(params)`.

        Raises:
            TypeError: an `optax.lookahead` is inside another transformation.
        """
        # Lookahead expects a pair of params, and warns without one.
        is_pair = getattr(self._tx.init, "__qualname__", "") == "lookahead.<locals>.init_fn"
        state = self._tx.init(optax.LookaheadParams.init_synced(params) if is_pair else params)
        if isinstance(state, optax.LookaheadState):
            return _Lookahead(state, params)
        if _outermost(optax.LookaheadState, state):
            raise TypeError(
                "optax.lookahead gives updates of two sets of params, so it must be the outermost "
                "transformation: write `optax.lookahead(optax.chain(...), sync_period, "
                "slow_step_size)`"
            )
        return state

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
        of_loss = {"value": value, "value_fn": value_fn, "obj_fn": value_fn}
        named = {**of_loss, "grad": grads, "grad_fn": grad_fn, **extra}
        arguments = {
            name: argument
            for name, argument in named.items()
            if argument is not None and (self._takes is None or name in self._takes)
        }
        if isinstance(state, _Lookahead):
            pair = optax.LookaheadParams(fast=params, slow=state.slow)
            updates, inner = self._update(grads, state.state, pair, arguments)
            pair = cast("Any", optax.apply_updates(pair, updates))
            return pair.fast, _Lookahead(inner, pair.slow)
        updates, state = self._update(grads, state, params, arguments)
        return optax.apply_updates(params, updates), state

    def _update(self, grads: Params, state: OptState, params: Params, arguments: Any) -> Any:
        """The update of the transformation; arguments that it refuses are left out.

        A chain accepts any argument and passes it on, so only the call shows which are refused.
        """
        try:
            return self._tx.update(grads, state, params, **arguments)
        except TypeError as error:
            first, refused = error, _refused(error) & set(arguments)
            if not refused:
                raise
        fewer = {name: value for name, value in arguments.items() if name not in refused}
        try:
            return self._update(grads, state, params, fewer)
        except (TypeError, ValueError) as error:
            needed = _missing(error) & refused
            if not needed:
                raise
            raise TypeError(
                f"one part of this optimiser needs {', '.join(sorted(needed))}, and another does "
                f"not take it ({first}). Wrap the one that does not: `optax."
                f"GradientTransformationExtraArgs(tx.init, lambda g, s, p=None, **_: "
                f"tx.update(g, s, p))`"
            ) from first

    def eval_params(self, state: OptState, params: Params, /) -> Params:
        """`params = optimizer.eval_params(opt_state, params)`."""
        if isinstance(state, _Lookahead):
            return state.slow
        for node in _outermost(contrib.ScheduleFreeState, state):
            params = _averaged_point(node, params)
        return params

    def has_updated(self, before: OptState, after: OptState, /) -> Any:
        """`optimizer.has_updated(before, after)`: False if a step only accumulated gradients.

        It is False between the updates of `optax.MultiSteps`, and when `optax.apply_if_finite` or
        `optax.conditionally_mask` skips an update.

        Returns:
            True if every step is an update, else a boolean scalar.
        """
        moved = _have_moved(before, after)
        return jnp.stack(moved).any() if moved else True


_Conditional: TypeAlias = (
    optax.MultiStepsState | optax.ApplyIfFiniteState | optax.ConditionallyMaskState
)
"""The states of transformations that do not update in every step."""


def _outermost(kind: Any, state: OptState) -> list[Any]:
    """The outermost states of a class in a state."""

    def is_one(node: Any) -> bool:
        return isinstance(node, kind)

    return [node for node in jax.tree.leaves(state, is_leaf=is_one) if is_one(node)]


def _have_moved(before: OptState, after: OptState) -> list[Any]:
    within = (_outermost(_Conditional, state) for state in (before, after))
    return [_has_moved(*pair) for pair in zip(*within, strict=True)]


def _has_moved(before: Any, after: Any) -> Any:
    """Whether the transformation and all those inside it have updated."""
    if isinstance(after, optax.ConditionallyMaskState):
        return jnp.asarray(False)  # its state does not show whether it has updated
    if isinstance(after, optax.ApplyIfFiniteState):
        moved, within = after.last_finite, (before.inner_state, after.inner_state)
    else:
        moved = before.gradient_step != after.gradient_step
        within = before.inner_opt_state, after.inner_opt_state
    for inner in _have_moved(*within):
        moved &= inner
    return moved


class _Lookahead(NamedTuple):
    """The state of `optax.lookahead` and its slow params; the Experiment has only the fast ones."""

    state: optax.LookaheadState
    slow: Params


def _averaged_point(node: contrib.ScheduleFreeState, params: Params) -> Params:
    """The params for evaluation: averaged where this optimiser updates them, else unchanged."""

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
    """The names in `unexpected keyword argument 'a'`, an error of Python or Optax's line search."""
    message = str(error)
    is_it = "nexpected keyword argument" in message
    return set(re.findall(r"'(\w+)'", message)) if is_it else set()


def _missing(error: Exception) -> set[str]:
    """The words of `missing 1 required keyword-only argument: 'a'` and `a must be provided`."""
    message = str(error)
    is_it = "missing" in message or "must be provided" in message
    return set(re.findall(r"\w+", message)) if is_it else set()


def _gradient_at_a_step(value_fn: Callable[[Params], Array]) -> Callable[[Params, Any], Params]:
    """The gradient function for SAM, which also passes the number of its adversarial step."""

    def grad_fn(params: Params, step: Any) -> Params:
        del step
        return cast("Any", jax.grad(value_fn)(params))

    return grad_fn


def _extra_arguments(tx: optax.GradientTransformation) -> frozenset[str] | None:
    """The names of the update's extra arguments; None if it accepts any, as a chain does."""
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        return frozenset()
    parameters = inspect.signature(cast("Callable[..., Any]", tx.update)).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)
