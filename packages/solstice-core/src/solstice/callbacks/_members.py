"""Members: what callbacks measure of a population."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from solstice._per_member import PerMember, placed

if TYPE_CHECKING:
    from solstice.population import Population


def population_of(experiment: object) -> "Population | None":
    """The Experiment if it is a population, else None."""
    # Here, because most runs have no population.
    from solstice.population import Population

    return experiment if isinstance(experiment, Population) else None


def as_metric(value: Any, experiment: object) -> float | PerMember:
    """A measured number of the host; or one for each member of a population."""
    if np.ndim(value) == 0:
        return float(value)
    population, values = population_of(experiment), np.asarray(value, np.float64)
    if population is None:  # members that are stacked by hand
        return placed(None, values, len(values))
    return placed(jax.device_get(population.ids), values, population.size)
