"""Learning rates and update counts in the states of an Experiment's optimisers."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from solstice import _tree

_INJECTED = "hyperparams/learning_rate"
_SCHEDULE = "ScaleByScheduleState"
_SCALING = (_SCHEDULE, "ReduceLROnPlateauState")
"""Names of Optax classes: the core finds them by name, because it does not import Optax."""


def injected_rates(experiment: object) -> dict[str, Any]:
    """The learning rates of `optax.inject_hyperparams`, by path."""
    leaves = _tree.leaves_by_slashes(experiment)
    return {p: x for p, x in leaves.items() if p.endswith(_INJECTED) and eqx.is_array(x)}


def rates_by_name(experiment: object) -> dict[str, Any]:
    """The same as metrics: "lr", or "lr/<path>" for each of several."""
    return _named({p.removesuffix(_INJECTED): x for p, x in injected_rates(experiment).items()})


def scaled_beside(experiment: object) -> str | None:
    """The path of a schedule that also scales the updates of an optimiser with an injected rate."""
    owners = {_optimizer_of(path) for path in injected_rates(experiment)}
    scaling = _tree.nodes_by_slashes(experiment, lambda node: type(node).__name__ in _SCALING)
    return next((path for path in scaling if _optimizer_of(path) in owners), None)


def updates_by_name(experiment: object, otherwise: int) -> dict[str, int]:
    """The number of updates so far as metrics: "lr", or "lr/<path>" for each of several.

    It is the count of a schedule. Without one, it is the largest `count` in a field `opt_state`,
    because the others leave out some updates. Without any count it is `otherwise`.
    """
    schedules = _tree.nodes_by_slashes(experiment, lambda node: type(node).__name__ == _SCHEDULE)
    counts = {path: node.count for path, node in schedules.items()} or _counts(experiment)
    most: dict[str, int] = {}
    for path, count in jax.device_get(counts).items():
        if np.ndim(count) <= 1:  # one for each member of a population, lower where it has stopped
            owner = _optimizer_of(path)
            most[owner] = max(int(np.max(count)), most.get(owner, 0))
    return _named({owner.removesuffix("opt_state"): n for owner, n in most.items()}) or {
        "lr": otherwise
    }


def _counts(experiment: object) -> dict[str, Any]:
    leaves = _tree.leaves_by_slashes(experiment)
    parts = {path: path.split("/") for path in leaves}
    return {p: x for p, x in leaves.items() if "opt_state" in parts[p] and parts[p][-1] == "count"}


def _optimizer_of(path: str) -> str:
    """The part of a path up to `opt_state`, or else the first field: one optimiser's state."""
    parts = path.split("/")
    end = parts.index("opt_state") if "opt_state" in parts else 0
    return "/".join(parts[: end + 1])


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    if len(values) == 1:
        return {"lr": next(iter(values.values()))}
    return {f"lr/{path.strip('/')}": value for path, value in values.items()}
