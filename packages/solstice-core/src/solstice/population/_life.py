"""The life of a population's members: they stop early, are removed, or copy the best."""

import inspect
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from solstice import _tree
from solstice._arguments import instance, whole_or_none
from solstice._engine import used
from solstice._errors import ExperimentError
from solstice._experiment import Experiment, steps_epochs
from solstice._monitor import Monitor, no_metric, no_scalar
from solstice._replace import replace
from solstice.population._evolve import Evolve, draw
from solstice.population._halving import Halving
from solstice.population._hyperparameters import Hyperparameters
from solstice.population._members import BatchLike, split
from solstice.population._ranking import on_host, scores_of

if TYPE_CHECKING:
    from solstice.population._population import Population

Rows = np.ndarray[Any, Any]

_OPTIONS = ("monitor", "mode", "patience", "halving", "evolve")


def named(*options: Any) -> dict[str, Any]:
    """The options of a population by name, in the order of its arguments."""
    return dict(zip(_OPTIONS, options, strict=True))


class Life(eqx.Module):
    """What ends or changes members after an epoch, and the state of that.

    Attributes:
        monitor: the metric by which members are compared.
        patience: the epochs in a row without improvement after which a member stops, or None.
        halving: the rule by which members are removed, or None.
        evolve: the rule by which members copy others, or None.
        best: the best score of each member; NaN before the first. Larger is better.
        waited: the epochs of each member since then.
        epochs: the epochs so far that had a value.
        key: of the next random choice.
    """

    monitor: Monitor = eqx.field(static=True)
    patience: int | None = eqx.field(static=True)
    halving: Halving | None = eqx.field(static=True)
    evolve: Evolve | None = eqx.field(static=True)
    best: Array
    waited: Array
    epochs: Array
    key: Array

    @staticmethod
    def of(
        options: Mapping[str, Any], size: int, hyperparameters: Hyperparameters
    ) -> "Life | None":
        """The life that the options of a population describe; None without rules.

        Raises:
            ValueError: an option is out of range, or has no rule to serve.
        """
        monitor, mode, patience, halving, evolve = (options[name] for name in _OPTIONS)
        if (patience, halving, evolve) == (None, None, None):
            return _no_rules(monitor, mode)
        if evolve is not None:
            instance("evolve", evolve, Evolve, "a `solstice.Evolve(...)`").check(hyperparameters)
        return Life(
            Monitor("val/loss" if monitor is None else monitor, mode),
            whole_or_none("patience", patience, 1, "epochs"),
            Halving.of(halving, size),
            evolve,
            jnp.full(size, jnp.nan, jnp.float32),
            jnp.zeros(size, jnp.int32),
            jnp.zeros((), jnp.int32),
            jax.random.key(0 if evolve is None else evolve.seed),
        )

    def stopping(self, scores: Rows, is_active: Rows) -> tuple[Self, Rows]:
        """The life after these scores, and which members are active still."""
        best, waited, epochs = on_host((self.best, self.waited, self.epochs))
        improves = is_active & ~np.isnan(scores) & (np.isnan(best) | (scores > best))
        best = np.where(improves, scores, best).astype(np.float32)
        waited = np.where(improves, 0, waited + 1).astype(np.int32)
        ends = waited >= (np.inf if self.patience is None else self.patience)
        best, waited, epochs = jax.device_put((best, waited, np.int32(epochs + 1)))
        return replace(self, best=best, waited=waited, epochs=epochs), is_active & ~ends


def _no_rules(monitor: object, mode: object) -> None:
    given = {"monitor": monitor, "mode": mode}
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}={value!r:.60} has no effect on a Population without a rule: give "
                f"patience=, halving= or evolve= too"
            )


def check_names(make: Any, options: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuses an option whose name `make` has for a hyperparameter.

    Raises:
        TypeError: a keyword may mean either.
    """
    known: Collection[str] = ()
    if callable(make):
        with suppress(TypeError, ValueError):  # a builtin does not always show its signature
            known = inspect.signature(make).parameters
    for name, value in options.items():
        if value is not None and name in known and name not in values:
            raise TypeError(
                f"{name}= is an option of Population, and `make` has an argument of that name: "
                f'write `Population(make, {{"{name}": ...}})` with the values for `make`, and the '
                f"other hyperparameters beside it or in the dict"
            )


def check_members(population: "Population") -> None:
    """Refuses members that a population cannot step after an epoch.

    Raises:
        ExperimentError: they have an `epoch_step`, or do not follow changed hyperparameters.
    """
    kind, members = type(population.members), population.members
    if members is not None and steps_epochs(members):
        raise ExperimentError(
            f"{kind.__name__} has an `epoch_step` or `is_finished`, which a population does not "
            f"call for its members: use patience=, halving= or evolve=, or train them one by one"
        )
    evolve = population.life and population.life.evolve
    if evolve is None:
        return
    if not population.is_traced:
        raise ExperimentError(
            "Evolve changes hyperparameters while the population trains, and `make` needs them as "
            "numbers of Python, so the members would not follow. Use the arguments of `make` with "
            "jax.numpy, `jax.random.key(seed)` in place of `int(seed)`"
        )
    followed, varied = _followed(population), evolve.varied(population.hyperparameters)
    others = [name for name in varied if name not in followed]
    if others:
        rest = [name for name in varied if name in followed]
        raise ExperimentError(
            f"Evolve varies {others[0]!r}, and train_step does not depend on it: `make` uses it "
            f"for the first values of arrays alone, such as those of `optax.inject_hyperparams`, "
            f"which are state. Use it in the step, as in `optax.adam({others[0]})`"
            + (f", or leave it out: `Evolve(only={rest})`" if rest else "")
        )


def _followed(population: "Population") -> set[str]:
    """The hyperparameters on which a training step depends."""
    batch = cast("BatchLike", population.batch_like).zeros(np.zeros)

    def step(values: dict[str, Array]) -> Any:
        new = replace(population, hyperparameters=values).train_step(batch)[0]
        return split(cast("Experiment", new.members))[1]

    jaxpr = cast("Any", jax.make_jaxpr(step))(population.hyperparameters).jaxpr
    paths = sorted(population.hyperparameters)  # the order of the leaves of a dict
    return {name for name, is_used in zip(paths, used(jaxpr), strict=True) if is_used}


def lived(population: "Population", metrics: Mapping[str, Any]) -> "Population":
    """The population after an epoch with these metrics."""
    life = population.life
    values = None if life is None else _values(population, life.monitor, metrics)
    if life is None or values is None:
        return population
    ids = on_host(population.ids)
    scores = scores_of(values[ids], life.monitor)
    life, is_active = life.stopping(scores, _active_of(population))
    population = replace(population, life=life, is_active=_put_active(population, is_active))
    epoch = int(on_host(life.epochs))
    if life.halving is not None and epoch % life.halving.every == 0:
        rows = life.halving.rows(scores)
        if len(rows) < len(ids):
            population = _with_rows(population, life, rows)
            scores, is_active = scores[rows], is_active[rows]
    if life.evolve is not None and epoch % life.evolve.every == 0:
        population = _evolved(population, life.evolve, scores, is_active)
    return population


def _active_of(population: "Population") -> Rows:
    """Which members steps change."""
    active = population.is_active
    return np.ones(len(population), bool) if active is None else on_host(active)


def _put_active(population: "Population", is_active: Rows) -> Array | None:
    # None stays None, because a mask costs time in every step.
    return None if population.is_active is None else jax.device_put(is_active)


def _values(population: "Population", monitor: Monitor, metrics: Mapping[str, Any]) -> Rows | None:
    """The monitored value of each member; None after an epoch without a validation."""
    mode = f"{monitor.monitor.partition('/')[0]}/"
    there = [name.removeprefix(mode) for name in metrics if name.startswith(mode)]
    if mode == "val/" and not there:
        return None
    name = type(population).__name__
    if monitor.monitor not in metrics:
        raise KeyError(no_metric(name, monitor.monitor, there))
    values = np.asarray(metrics[monitor.monitor])
    if values.shape != (population.size,):
        raise ValueError(no_scalar(name, monitor.monitor, values.ndim - 1))
    return values


def _with_rows(population: "Population", life: Life, rows: Rows) -> "Population":
    """The population of these members alone."""
    template, arrays = split(cast("Experiment", population.members))
    of_members = arrays, population.hyperparameters, population.ids
    arrays, hyperparameters, ids = _taken(of_members, rows)
    best, waited = jax.device_put([x[rows] for x in on_host((life.best, life.waited))])
    is_active = _put_active(population, _active_of(population)[rows])
    return replace(
        population,
        members=template.merge(arrays),
        hyperparameters=hyperparameters,
        ids=ids,
        is_active=is_active,
        life=replace(life, best=best, waited=waited),
    )


def _evolved(
    population: "Population", evolve: Evolve, scores: Rows, is_active: Rows
) -> "Population":
    """The population in which the worst members are copies of the best, varied."""
    life, values = cast("Life", population.life), population.hyperparameters
    new_key, drawn = draw(life.key, (len(scores), 1 + len(evolve.varied(values))))
    draws, old_best, old_waited = on_host((drawn, life.best, life.waited))
    sources = evolve.sources(scores, is_active, draws[:, 0])
    is_copy = sources != np.arange(len(sources))
    varied = evolve.varied_values(values, sources, draws[:, 1:])
    template, arrays = split(cast("Experiment", population.members))
    arrays, copied = _taken((arrays, values), sources)
    best = np.where(is_copy, scores[sources], old_best).astype(np.float32)
    waited = np.where(is_copy, 0, old_waited).astype(np.int32)
    best, waited = jax.device_put(best), jax.device_put(waited)
    return replace(
        population,
        members=template.merge(arrays),
        hyperparameters={**copied, **jax.device_put(varied)},
        life=replace(life, best=best, waited=waited, key=new_key),
    )


def _taken(tree: Any, rows: Rows) -> Any:
    """The arrays of some members, or of all in another order."""
    first = _tree.leaves(tree)[0].sharding
    # Whole on each device of a mesh, and else on no device in particular, as the arrays are.
    whole = NamedSharding(first.mesh, PartitionSpec()) if isinstance(first, NamedSharding) else None
    return cast("Any", _rows_of)(tree, jax.device_put(rows.astype(np.int32), whole))


@jax.jit
def _rows_of(tree: Any, rows: Array) -> Any:
    def take(array: Array) -> Array:
        return array[rows] if array.ndim else array  # a number of all members

    return _tree.map(take, tree)
