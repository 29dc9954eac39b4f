"""Spikes: steps left out because their gradient is far larger than those before."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from solstice import _tree
from solstice._arguments import number, whole
from solstice.compat._norms import norms_of
from solstice.compat._protocols import Around, Optimizer, OptState, Params
from solstice.compat._registry import adapt_argument

_FEWEST = 5
"""Norms to know before a step is judged: the median of fewer says little."""


class Spikes(eqx.Module):
    """The norms and the skipped steps, in the optimiser state of `skip_spikes`.

    Attributes:
        norm: the Euclidean norm of the newest gradient, a float32 scalar; NaN or infinite if the
            gradient is.
        limit: the largest norm that the newest step could have without being skipped; infinite
            while too few norms are known.
        skipped: the number of skipped steps, an int32 scalar.
        window: the norms of the last accepted steps, float32 of shape [window]; infinite where
            none is known yet.
        accepted: the number of norms written to `window` since it was last empty, an int32 scalar.
        in_a_row: the number of steps skipped since the last accepted one, an int32 scalar.
    """

    norm: Array
    limit: Array
    skipped: Array
    window: Array
    accepted: Array
    in_a_row: Array


def skip_spikes(optimizer: object, times: float = 3.0, window: int = 100) -> Optimizer:
    """`optimizer = solstice.compat.skip_spikes(optax.adam(3e-4))`: leave out steps that spike.

    A step is skipped if the norm of its gradient is more than `times` the median of the last
    `window` accepted norms, or is NaN or infinite: the params and the optimiser's state stay as
    they are. What a model keeps in its state, such as the statistics of BatchNorm, moves on.
    Nothing is read back. The norm is that before clipping in the optimiser.

    The first 5 steps (the first `window`, if that is smaller) are skipped only if their gradient
    is not finite. A gradient of 0, as that of a fully masked batch, is accepted, and its norm does
    not count. After `window` skipped steps in a row the gradient has a new level: the old norms are
    dropped, and the median starts again.

    The state is a pair: that of `optimizer`, and `Spikes`. It is saved with the run, so a resumed
    run skips the same steps. Ready-made Experiments add the metric "skipped", the number of skipped
    steps. `FlightRecorder(on="spike")` saves the run before the first one, for `solstice.replay`.

    Args:
        optimizer: an `Optimizer`, or an optimiser that has an adapter.
        times: the norm of a spike, as a multiple of the median; more than 1.
        window: how many accepted norms the median covers, 1 or more.

    Raises:
        ValueError: `times` or `window` is out of its range.
        TypeError, AdapterError: there is no adapter for `optimizer`.
    """
    times = number("times", times, "more than 1, such as 3.0", lambda x: x > 1)
    window = whole("window", window, 1, "steps")
    return _Despiking(adapt_argument("optimizer", "optimizer", optimizer), times, window)


def spikes_of(tree: object) -> list[Spikes]:
    """`spikes_of(exp)[0].skipped`: the `Spikes` of each `skip_spikes` in a tree.

    Args:
        tree: an Experiment, an optimiser's state, or any other tree.
    """
    return [node for node in _tree.leaves(tree, _is_spikes) if _is_spikes(node)]


def num_skipped(tree: object) -> int | None:
    """The steps that all `skip_spikes` in a tree have skipped so far; None if there are none."""
    counts: Any = jax.device_get([spikes.skipped for spikes in spikes_of(tree)])
    return sum(int(count.sum()) for count in counts) if counts else None


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Despiking(Around):
    """An optimiser without the steps that spike. Its state is (inner state, Spikes)."""

    times: float
    window: int

    def init(self, params: Params, /) -> OptState:
        """`opt_state = optimizer.init(params)`."""
        # An array for each field: two leaves that share one cannot be donated.
        skipped, accepted, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
        norm, limit = jnp.zeros((), jnp.float32), jnp.full((), jnp.inf, jnp.float32)
        window = jnp.full(self.window, jnp.inf, jnp.float32)
        spikes = Spikes(norm, limit, skipped, window, accepted, in_a_row)
        return self.optimizer.init(params), spikes

    def step(
        self, grads: Params, state: OptState, params: Params, /, **extra: Any
    ) -> tuple[Params, OptState]:
        """`params, opt_state = optimizer.step(grads, opt_state, params)`."""
        inner, spikes = state
        norm, limit = norms_of(grads, 0)[""], self._limit(spikes)
        is_good = jnp.isfinite(norm) & (norm <= limit)
        new = self.optimizer.step(grads, inner, params, **extra)

        params, inner = _tree.map(partial(jnp.where, is_good), new, (params, inner))
        return params, (inner, self._counted(spikes, norm, limit, is_good))

    def has_updated(self, before: OptState, after: OptState, /) -> bool | Array:
        """`optimizer.has_updated(before, after)`: see `Optimizer`."""
        return super().has_updated(before, after) & (before[1].skipped == after[1].skipped)

    def _limit(self, spikes: Spikes) -> Array:
        """The largest norm of the next step."""
        # Places without a norm are infinite, and so at the end.
        norms, known = jnp.sort(spikes.window), jnp.minimum(spikes.accepted, self.window)
        lower, upper = norms[jnp.maximum(known - 1, 0) // 2], norms[known // 2]
        median = lower / 2 + upper / 2  # their sum might overflow
        return jnp.where(known < min(_FEWEST, self.window), jnp.inf, self.times * median)

    def _counted(self, spikes: Spikes, norm: Array, limit: Array, is_good: Array) -> Spikes:
        """The norms and the counts after a step."""
        # Norms of 0 would make each other step a spike.
        is_level = is_good & (norm > 0)
        place = spikes.accepted % self.window
        window = spikes.window.at[place].set(jnp.where(is_level, norm, spikes.window[place]))
        in_a_row = jnp.where(is_good, 0, spikes.in_a_row + 1)
        # Without this, a gradient that stays larger would end the training in silence.
        is_new_level = in_a_row >= self.window
        return Spikes(
            norm,
            limit,
            spikes.skipped + jnp.where(is_good, 0, 1),
            jnp.where(is_new_level, jnp.inf, window),
            jnp.where(is_new_level, 0, spikes.accepted + jnp.where(is_level, 1, 0)),
            jnp.where(is_new_level, 0, in_a_row),
        )


def _is_spikes(node: object) -> bool:
    return isinstance(node, Spikes)
