"""Evolve: population-based training, in which the worst members copy the best and vary them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice._arguments import whole
from solstice.population._hyperparameters import Hyperparameters
from solstice.population._ranking import best_first, on_host

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True, init=False)
class Evolve:
    """`Population(make, rate=..., monitor="val/accuracy", evolve=Evolve(every=2))`.

    Population-based training (Jaderberg et al., 2017, arXiv:1711.09846). After every `every`-th
    epoch, each of the worst members becomes a copy of one of the best, chosen at random: its
    weights, its optimiser state and its hyperparameters. Then each of its hyperparameters is
    multiplied by one of `factors`, chosen at random.

    Args:
        every: epochs from one evolution to the next, 1 or more.
        fraction: the part of the members that is replaced, and the part that is copied, up to 0.5;
            rounded down, but one member or more.
        factors: the factors of a hyperparameter.
        only: the names of the hyperparameters that are multiplied; by default all that are
            floating-point numbers. The others are copied.
        bounds: by name, the smallest and the largest value, as in `{"dropout": (0.0, 0.9)}`.
        seed: of the choices.

    Raises:
        ValueError: an argument is out of range.
    """

    every: int
    fraction: float
    factors: tuple[float, ...]
    only: tuple[str, ...] | None
    bounds: tuple[tuple[str, float, float], ...]
    seed: int

    def __init__(
        self,
        every: int = 1,
        *,
        fraction: float = 0.25,
        factors: Sequence[float] = (0.8, 1.25),
        only: Sequence[str] | None = None,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        seed: int = 0,
    ) -> None:
        fields: dict[str, Any] = {
            "every": whole("Evolve(every=)", every, 1, "epochs"),
            "fraction": _fraction(fraction),
            "factors": _factors(factors),
            "only": None if only is None else _names(only),
            "bounds": tuple(_bound(*one) for one in dict(bounds or {}).items()),
            "seed": whole("Evolve(seed=)", seed, 0),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def check(self, hyperparameters: Hyperparameters) -> None:
        """Refuses hyperparameters that it cannot vary.

        Raises:
            ValueError: there is one member, there is no hyperparameter to multiply, or one of that
                name does not exist, or is not a floating-point number.
        """
        given = [*(self.only or ()), *(name for name, _, _ in self.bounds)]
        for name in given:
            if name not in hyperparameters:
                raise ValueError(
                    f"Evolve names {name!r}, which is not a hyperparameter of the population: "
                    f"{', '.join(hyperparameters) or 'it has none'}"
                )
        for name in self.only or ():
            if not _is_real(hyperparameters[name]):
                dtype = hyperparameters[name].dtype
                raise ValueError(f"Evolve multiplies floating-point numbers; {name!r} is {dtype}")
        if not self.varied(hyperparameters):
            raise ValueError(
                "Evolve has nothing to vary: the population has no floating-point hyperparameter. "
                "Give one, as in `Population(make, rate=jnp.geomspace(1e-4, 1e-2, 16), "
                "evolve=Evolve())`"
            )
        if len(next(iter(hyperparameters.values()))) < 2:
            raise ValueError("Evolve copies the best members, so it needs two members or more")

    def varied(self, hyperparameters: Hyperparameters) -> list[str]:
        """The names of the hyperparameters that are multiplied."""
        if self.only is not None:
            return [*self.only]
        return [name for name, values in hyperparameters.items() if _is_real(values)]

    def sources(self, scores: Numbers, may_change: Numbers, draws: Numbers) -> Numbers:
        """For each member, the one that it becomes a copy of; itself if it stays.

        Args:
            scores: the score of each member, larger is better; NaN is the worst.
            may_change: whether a member may be replaced.
            draws: a random number in [0, 1) for each member.
        """
        order = best_first(scores)
        count = max(int(len(order) * self.fraction + 1e-9), 1)
        best = [row for row in order[:count] if not np.isnan(scores[row])]
        found = np.arange(len(order))
        if best and len(order) > 1:
            worst = [row for row in order[-count:] if may_change[row]]
            found[worst] = [best[int(draws[row] * len(best))] for row in worst]
        return found

    def varied_values(
        self, hyperparameters: Hyperparameters, sources: Numbers, draws: Numbers
    ) -> dict[str, Numbers]:
        """The varied hyperparameters, those of each copy multiplied by a factor.

        Args:
            hyperparameters: those before.
            sources: the result of `sources`.
            draws: a random number in [0, 1) for each member and varied hyperparameter.
        """
        found = dict[str, Numbers]()
        is_copy = sources != np.arange(len(sources))
        bounds = {name: (low, high) for name, low, high in self.bounds}
        for column, name in enumerate(self.varied(hyperparameters)):
            values = on_host(hyperparameters[name])[sources]
            chosen = np.asarray(self.factors)[(draws[:, column] * len(self.factors)).astype(int)]
            factors = np.where(is_copy, chosen, 1.0).reshape(-1, *[1] * (values.ndim - 1))
            new = np.clip(values * factors, *bounds.get(name, (-np.inf, np.inf)))
            found[name] = np.where(factors == 1.0, values, new.astype(values.dtype))
        return found


def draw(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The next key, and random numbers in [0, 1)."""
    return cast("Any", _drawn)(key, shape)


@partial(jax.jit, static_argnums=1)
def _drawn(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    key, now = jax.random.split(key)
    return key, jax.random.uniform(now, shape)


def _is_real(values: Array) -> bool:
    return jnp.issubdtype(values.dtype, jnp.floating)


def _fraction(fraction: Any) -> float:
    if (
        isinstance(fraction, bool)
        or not isinstance(fraction, int | float)
        or not 0 < fraction <= 0.5
    ):
        raise ValueError(
            f"Evolve(fraction=) must be a part of the members above 0 and up to 0.5; it is "
            f"{fraction!r:.60}"
        )
    return float(fraction)


def _factors(factors: Any) -> tuple[float, ...]:
    try:
        found = tuple(float(one) for one in factors)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(0 < one < np.inf for one in found):
        raise ValueError(
            f"Evolve(factors=) must be positive numbers, such as (0.8, 1.25); they are "
            f"{factors!r:.60}"
        )
    return found


def _names(only: Any) -> tuple[str, ...]:
    if isinstance(only, str):
        raise ValueError(f'Evolve(only=) must be names: write `only=("{only}",)`')
    return tuple(cast("Sequence[str]", only))


def _bound(name: str, bound: Any) -> tuple[str, float, float]:
    try:
        low, high = (float(one) for one in bound)
    except (TypeError, ValueError):
        low, high = np.nan, np.nan
    if not low <= high:
        raise ValueError(
            f"Evolve(bounds=) must have the smallest and the largest value of each name, such as "
            f'{{"{name}": (1e-5, 0.1)}}; of {name!r} it has {bound!r:.60}'
        )
    return name, low, high
