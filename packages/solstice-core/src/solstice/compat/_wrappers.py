"""Optimisers around optimisers: averaged weights, frozen weights, bad updates left out."""

import fnmatch
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from solstice import _tree
from solstice._arguments import names, share, switch
from solstice.compat._protocols import Around, Optimizer, OptState, Params, has_updated
from solstice.compat._registry import adapt_argument


def ema(optimizer: object, decay: float = 0.999, *, debias: bool = True) -> Optimizer:
    """`optimizer = solstice.compat.ema(optax.adam(3e-4), 0.999)`: evaluate averaged weights.

    Beside the params, an exponential moving average of them is kept, with which an Experiment
    evaluates (`eval_params`). It is corrected for its start, as in Adam: after the first update it
    is the params themselves, and after many the mean of about `1 / (1 - decay)` updates. With
    `debias=False` it starts at the initial params instead, and is the average of
    `optax.incremental_update(new, average, 1 - decay)`. It is kept in float32 at least, so that a
    small change of a bfloat16 weight is not lost.

    A step that only gathers gradients (`optax.MultiSteps`), or that is left out because it is not
    finite (`skip_nonfinite`, `optax.apply_if_finite`), does not move the average. An optimiser says
    so by a method `has_updated`: see `Optimizer`.

    Args:
        optimizer: an `Optimizer`, or an optimiser that has an adapter. The average is of what it
            evaluates with itself.
        decay: what remains of the average in an update, in [0, 1).
        debias: whether the average is corrected for its start.

    Raises:
        ValueError: `decay` is out of its range.
        TypeError, AdapterError: there is no adapter for `optimizer`.
    """
    decay, debias = share("decay", decay, such_as="0.999"), switch("debias", debias)
    return _Averaging(adapt_argument("optimizer", "optimizer", optimizer), decay, debias)


def freeze(optimizer: object, frozen: str | Iterable[str] | Callable[[str], bool]) -> Optimizer:
    """`optimizer = solstice.compat.freeze(optax.adam(3e-4), "encoder/*")`: keep weights fixed.

    The optimiser sees the other params alone, and keeps no state for the frozen ones; under
    `jax.jit` no gradient is computed for them. What a model keeps in its state, such as the
    statistics of BatchNorm, moves on.

    Args:
        optimizer: an `Optimizer`, or an optimiser that has an adapter.
        frozen: which params, by their paths such as "encoder/Dense_0/kernel": a pattern, several,
            or a function of the path. In a pattern, `*` stands for anything, slashes too.

    Raises:
        TypeError, AdapterError: there is no adapter for `optimizer`, or `frozen` holds no text.
        ValueError: `frozen` is empty; or, at `init`, a pattern matches no param, or all params are
            frozen.
    """
    chosen = frozen if callable(frozen) else names("frozen", frozen)
    if not chosen:
        raise ValueError(
            f'frozen must be a pattern such as "encoder/*", several, or a function of the path; it '
            f"is {frozen!r}"
        )
    return _Freezing(adapt_argument("optimizer", "optimizer", optimizer), chosen)


def skip_nonfinite(optimizer: object) -> Optimizer:
    """`optimizer = solstice.compat.skip_nonfinite(optax.adam(3e-4))`: leave out bad updates.

    Where the loss or the gradient of a step is NaN or infinite, the params and the optimiser's
    state stay as they are. Nothing is read back. What a model keeps in its state, such as the
    statistics of BatchNorm, moves on. The state is a pair: that of `optimizer`, and how many steps
    were left out, an int32 scalar.

    Args:
        optimizer: an `Optimizer`, or an optimiser that has an adapter.

    Raises:
        TypeError, AdapterError: there is no adapter for `optimizer`.
    """
    return _Skipping(adapt_argument("optimizer", "optimizer", optimizer))


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Averaging(Around):
    """An optimiser and an average of its params. Its state is (inner state, average, updates)."""

    decay: float
    debias: bool

    def init(self, params: Params, /) -> OptState:
        """`opt_state = optimizer.init(params)`."""
        average = _tree.map(_tree.wide, params)
        return self.optimizer.init(params), average, jnp.zeros((), jnp.int32)

    def step(
        self, grads: Params, state: OptState, params: Params, /, **extra: Any
    ) -> tuple[Params, OptState]:
        """`params, opt_state = optimizer.step(grads, opt_state, params)`."""
        before, average, updates = state
        new, inner = self.optimizer.step(grads, before, params, **extra)
        moved = self._moved(average, self.optimizer.eval_params(inner, new), updates + 1)
        # To count steps that only gather gradients would shorten the average.
        is_update = has_updated(self.optimizer, before, inner)
        if is_update is True:
            return new, (inner, moved, updates + 1)
        is_update |= _differ(new, params)  # a part of them may have an optimiser of its own

        average = _tree.map(partial(jnp.where, is_update), moved, average)
        return new, (inner, average, jnp.where(is_update, updates + 1, updates))

    def _moved(self, average: Params, point: Params, updates: Array) -> Params:
        """The average after one more update, the `updates`-th."""
        if not self.debias:
            return _tree.map(partial(_incremental, 1 - self.decay), point, average)
        # 1 at the first step, and 1 - decay in the end: the average of Adam, already divided.
        log_decay = math.log(self.decay) if self.decay else -math.inf  # log(0) raises
        # 1 - decay ** updates would lose its digits at a decay near 1.
        share = (1 - self.decay) / -jnp.expm1(updates.astype(jnp.float32) * log_decay)

        def moved(mean: Array, to: Array) -> Array:
            return mean + share.astype(mean.dtype) * (_tree.wide(to) - mean)

        return _tree.map(moved, average, point)

    def eval_params(self, state: OptState, params: Params, /) -> Params:
        """`params = optimizer.eval_params(opt_state, params)`: the average."""
        return _tree.map(_tree.in_dtype_of, state[1], params)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Freezing:
    """An optimiser of some of the params. In the trees that it sees, the others are None."""

    optimizer: Optimizer
    frozen: tuple[str, ...] | Callable[[str], bool]

    def init(self, params: Params, /) -> OptState:
        """`opt_state = optimizer.init(params)`."""
        paths = list(_tree.leaves_by_slashes(params))
        problem = self._problem(paths)
        if problem:
            raise ValueError(
                f"{problem}. The params are: {', '.join(paths[:20])}"
                f"{' ...' if len(paths) > 20 else ''}"
            )
        return self.optimizer.init(self._split(params)[0])

    def _problem(self, paths: list[str]) -> str | None:
        """What is wrong with the choice, in words."""
        if not callable(self.frozen):
            for pattern in self.frozen:
                if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
                    return f"the frozen pattern {pattern!r} matches no param"
        count = sum(map(self._is_frozen, paths))
        if count in (0, len(paths)):
            return f"frozen={self.frozen!r} matches {'all params' if count else 'no param'}"
        return None

    def step(
        self, grads: Params, state: OptState, params: Params, /, **extra: Any
    ) -> tuple[Params, OptState]:
        """`params, opt_state = optimizer.step(grads, opt_state, params)`."""
        trained, kept = self._split(params)
        whole = extra.get("value_fn")
        if whole is not None:

            def of_trained(part: Params) -> Array:
                return whole(eqx.combine(part, kept))

            extra["value_fn"] = of_trained
        trained, state = self.optimizer.step(self._split(grads)[0], state, trained, **extra)
        return eqx.combine(trained, kept), state

    def eval_params(self, state: OptState, params: Params, /) -> Params:
        """`params = optimizer.eval_params(opt_state, params)`."""
        trained, kept = self._split(params)
        return eqx.combine(self.optimizer.eval_params(state, trained), kept)

    def has_updated(self, before: OptState, after: OptState, /) -> bool | Array:
        """`optimizer.has_updated(before, after)`: see `Optimizer`."""
        return has_updated(self.optimizer, before, after)

    def _split(self, tree: Params) -> tuple[Params, Params]:
        """The tree that is trained, and the one that is not."""
        chosen = [not self._is_frozen(path) for path in _tree.leaves_by_slashes(tree)]
        trained = _tree.unflatten(_tree.structure(tree), chosen)
        return cast("Any", eqx.partition(tree, trained))

    def _is_frozen(self, path: str) -> bool:
        if callable(self.frozen):
            return bool(self.frozen(path))
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.frozen)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Skipping(Around):
    """An optimiser without its steps that are not finite. Its state is (inner state, skipped)."""

    def init(self, params: Params, /) -> OptState:
        """`opt_state = optimizer.init(params)`."""
        return self.optimizer.init(params), jnp.zeros((), jnp.int32)

    def step(
        self, grads: Params, state: OptState, params: Params, /, **extra: Any
    ) -> tuple[Params, OptState]:
        """`params, opt_state = optimizer.step(grads, opt_state, params)`."""
        inner, skipped = state
        given = _tree.leaves((grads, extra.get("value")))
        is_good = jnp.stack([jnp.isfinite(leaf).all() for leaf in given]).all()
        new = self.optimizer.step(grads, inner, params, **extra)

        params, inner = _tree.map(partial(jnp.where, is_good), new, (params, inner))
        return params, (inner, skipped + jnp.where(is_good, 0, 1))

    def has_updated(self, before: OptState, after: OptState, /) -> bool | Array:
        """`optimizer.has_updated(before, after)`: see `Optimizer`."""
        return super().has_updated(before, after) & (before[1] == after[1])


def _incremental(step: float, new: Array, mean: Array) -> Array:
    """The formula of `optax.incremental_update`, for the same bits."""
    return step * _tree.wide(new) + (1.0 - step) * mean


def _differ(one: Params, other: Params) -> Array:
    """Whether any number of two trees is another; NaN always is."""
    pairs = zip(_tree.leaves(one), _tree.leaves(other), strict=True)
    return reduce(jnp.logical_or, [jnp.any(a != b) for a, b in pairs])
