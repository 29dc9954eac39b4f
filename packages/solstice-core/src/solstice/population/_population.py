"""Population: N members of one Experiment as one Experiment."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self, SupportsIndex, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from solstice import _tree
from solstice._better import Direction
from solstice._errors import DataError
from solstice._experiment import (
    Experiment,
    check_experiment,
    overrides,
    params_of,
    stacked_check_of,
)
from solstice._replace import replace
from solstice._types import Batch, Outputs
from solstice.compat import Params
from solstice.experiments import ReadyMadeExperiment
from solstice.metrics import Mapped
from solstice.population._evolve import Evolve
from solstice.population._hyperparameters import (
    Hyperparameters,
    as_mapping,
    checked,
    fingerprint,
    in_words,
    one_of,
)
from solstice.population._life import Life, check_members, check_names, lived, named
from solstice.population._members import BatchLike, Make, built, grafted, made, split, stacked
from solstice.population._ranking import on_host
from solstice.population._steps import Stepped, stepped


class Population(ReadyMadeExperiment):
    """`Population(make, rate=jnp.geomspace(1e-4, 1e-2, 16), seed=jnp.arange(16))`: N members.

    ```python
    def make(rate, seed):
        return solstice.ClassificationExperiment(model, optax.adam(rate), seed=seed)

    pop = solstice.Population(make, rate=jnp.geomspace(1e-4, 1e-2, 16), seed=jnp.arange(16))
    pop = trainer.fit(pop, train_ds, val_ds, num_epochs=10)
    best = pop[trainer.history.best("val/accuracy")["member"]]
    ```

    A population is an Experiment, so it trains, is saved, and resumes like one. All members train
    in one compiled program, on the same batches: member i goes through the same values as
    `make(rate[i], seed[i])` would alone. Metrics have a value for each member.

    `make` is called while JAX traces each step, with the hyperparameters of one member as traced
    scalars, so a hyperparameter works wherever JAX takes an array: `optax.adam(rate)`, a weight
    decay, a factor in a loss. It must be pure. If `make` needs numbers of Python, as `int(seed)`
    does, members are made one by one instead; they may then differ in the values of arrays only.

    Args:
        make: a function from hyperparameters to an Experiment; or a list of Experiments that differ
            in the values of arrays only.
        hyperparameters: a dict of the values of each, in place of keywords.
        monitor: the metric by which members are compared, such as "val/accuracy"; "val/loss" by
            default.
        mode: whether a smaller ("min") or a larger ("max") value is better. By default the name
            decides, as in `EarlyStopping`.
        patience: the epochs in a row without improvement after which a member stops: its arrays no
            longer change. When all have stopped, the run ends.
        halving: `(every, keep)`: after every `every`-th epoch the best `keep` members stay, a part
            of them (rounded down, one or more) or a number, and the others are removed.
        evolve: population-based training, a `solstice.Evolve`.
        **values: the values of each hyperparameter, with the members on axis 0; see `grid`. A
            single number is for all members. Write them as a dict if `make` has an argument with
            the name of an option.

    Attributes:
        members: an Experiment whose arrays have the members on axis 0; None before `setup`.
        hyperparameters: the value of each member, by name; {} for a list of Experiments.
        ids: the number of each member, int32 of shape [N].
        is_active: whether steps change a member, a boolean of shape [N]; None for all.
        life: the state of `patience`, `halving` and `evolve`; None without them.

    Raises:
        TypeError: `make` does not take these hyperparameters, or does not return an Experiment.
        ValueError: the values are not numbers, or differ in length, or there are none.
        ExperimentError: in `setup` and in steps, the members differ in more than the values of
            arrays, or a hyperparameter is needed as a number of Python.
    """

    members: Experiment | None
    hyperparameters: Hyperparameters
    ids: Array
    is_active: Array | None
    life: Life | None
    make: Make | None = eqx.field(static=True)
    size: int = eqx.field(static=True)
    """The number of members at first."""
    made_from: str = eqx.field(static=True)
    """The first hyperparameters in words, by which a checkpoint of others is refused."""
    is_traced: bool = eqx.field(static=True)
    """Whether steps call `make`."""
    batch_like: BatchLike | None = eqx.field(static=True)
    """The first batch, without its values; None before `setup`."""

    def __init__(
        self,
        make: Make | Sequence[Experiment],
        hyperparameters: object = None,
        /,
        *,
        monitor: str | None = None,
        mode: Direction | None = None,
        patience: int | None = None,
        halving: tuple[int, float] | None = None,
        evolve: Evolve | None = None,
        **values: ArrayLike | range,
    ) -> None:
        options = named(monitor, mode, patience, halving, evolve)
        check_names(make, options, as_mapping(hyperparameters))
        if callable(make) and not isinstance(make, Experiment):
            self.make, self.members, self.is_traced = make, None, True
            self.hyperparameters = checked(make, {**as_mapping(hyperparameters), **values})
            self.size = len(next(iter(self.hyperparameters.values())))
        else:
            members = _as_list(make, hyperparameters, values)
            self.make, self.members, self.is_traced = None, stacked(members, _advice), False
            self.hyperparameters, self.size = {}, len(members)
        self.made_from = fingerprint(self.hyperparameters)
        self.ids = jnp.arange(self.size, dtype=jnp.int32)
        self.is_active = None if patience is None else jnp.ones(self.size, bool)
        self.batch_like = None
        self.life = Life.of(options, self.size, self.hyperparameters)

    @property
    def params(self) -> Params:
        """The params of the members, with the members on axis 0; None before `setup`."""
        return None if self.members is None else params_of(self.members)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __iter__(self) -> Iterator[Experiment]:
        return (self[int(index)] for index in _tree.to_numpy(self.ids))

    def __getitem__(self, index: SupportsIndex) -> Experiment:
        """`best = pop[3]`: the member with this number, as an Experiment of its own.

        Raises:
            IndexError: there is no such member, or it has been removed.
            TypeError: `index` is not an integer.
        """
        row = _row_of(self, index)
        values = one_of(self.hyperparameters, row)
        if self.members is None:
            return cast("Make", self.make)(**values)
        template, arrays = split(self.members)
        member = template.merge(_rows_at(arrays, row))
        if self.make is None or not self.is_traced or self.batch_like is None:
            return member
        # Not within a trace, whose values would stay in what `make` creates, such as an optimiser.
        return grafted(made(self.make, values, self.batch_like.zeros(np.zeros)), member)

    def __repr__(self) -> str:
        kind = "" if self.members is None else f" of {type(self.members).__name__}"
        values = in_words(self.hyperparameters)
        count = f"{len(self)} member{'s' if len(self) > 1 else ''}"
        return f"Population({count}{kind}{f'; {values}' if values else ''})"

    def setup(self, batch: Batch) -> Self:
        """Makes the members from the shapes of the first batch; a second call does nothing."""
        if self.batch_like is not None:
            return self
        like, members, is_traced = BatchLike.of(batch), None, self.is_traced
        if self.make is None:
            members = stacked([member.setup(batch) for member in self], _advice)
        else:
            members, is_traced = built(self.make, self.hyperparameters, batch)
        new = replace(self, members=members, is_traced=is_traced, batch_like=like)
        check_members(new)
        return new

    @property
    def monitor(self) -> str | None:
        """The metric by which members are compared; None if they are not."""
        return None if self.life is None else self.life.monitor.monitor

    @property
    def is_finished(self) -> bool:
        """Whether all members have stopped."""
        return self.is_active is not None and not on_host(self.is_active).any()

    def epoch_step(self, metrics: Mapping[str, Any]) -> Self:
        """Stops, removes and evolves members, by the metrics of an epoch."""
        return cast("Self", lived(self, metrics))

    def check_batch(self, batch: Batch) -> None:
        """Raises a DataError if a member refuses the batch."""
        if overrides(_kind(self), "check_batch"):
            _kind(self).check_batch(_first(self), batch)

    def stacked_check(self) -> Callable[[Batch], None] | None:
        """The `stacked_check` of a member."""
        checks = (overrides(_kind(self), name) for name in ("check_batch", "stacked_check"))
        return stacked_check_of(_first(self)) if any(checks) else _no_check

    def train_step(self, batch: Batch) -> tuple[Self, Outputs]:
        """`pop, outputs = pop.train_step(batch)`: one update of each active member."""
        return self._step("train_step", batch)

    def eval_step(self, batch: Batch) -> tuple[Self, Outputs]:
        """`pop, outputs = pop.eval_step(batch)`: the metrics of each member."""
        return self._step("eval_step", batch)

    def predict_step(self, batch: Batch) -> Outputs:
        """`outputs = pop.predict_step(batch)`: arrays [n, N, ...], the members on axis 1."""
        outputs = self._stepped("predict_step", batch).others
        return _tree.map(_members_second, outputs)

    def _step(self, method: str, batch: Batch) -> tuple[Self, Outputs]:
        done = self._stepped(method, batch)
        return replace(self, members=done.members), _outputs(self, done)

    def _stepped(self, method: str, batch: Batch) -> Stepped:
        if self.members is None:
            raise DataError(
                "the population has no members yet: train it first, or call `pop.setup(batch)`"
            )
        rebuild = None
        if self.make is not None and self.is_traced and self.batch_like is not None:
            rebuild = partial(made, self.make, batch=self.batch_like.zeros(cast("Any", jnp.zeros)))
        active = self.is_active
        return stepped(self.members, method, batch, self.hyperparameters, active, rebuild)


def _advice() -> str:
    return (
        "Share the model and the optimiser between the Experiments, or give a function that builds "
        "them from its arguments: `Population(make, rate=..., seed=...)`"
    )


def _as_list(given: object, hyperparameters: object, values: dict[str, Any]) -> list[Experiment]:
    """The Experiments of a list, checked."""
    if isinstance(given, str | bytes | Experiment) or not isinstance(given, Sequence):
        raise TypeError(
            f"a Population takes a function that returns an Experiment, `Population(make, "
            f"rate=[1e-3, 1e-2])`, or a list of Experiments; it was given {given!r:.60}"
        )
    if hyperparameters is not None or values:
        raise TypeError(
            "a list of Experiments takes no hyperparameters: give a function that builds them "
            "from its arguments, `Population(make, rate=..., seed=...)`"
        )
    members = list(cast("Sequence[Any]", given))
    if not members:
        raise ValueError("a Population needs one Experiment or more; the list is empty")
    for index, member in enumerate(members):
        if not isinstance(member, Experiment):
            raise TypeError(
                f"a Population takes a list of Experiments; number {index} is {member!r:.60}"
            )
        check_experiment(member)
    return members


def _outputs(population: Population, done: Stepped) -> Outputs:
    """The metrics of each member, and other outputs."""
    if done.metrics is None:
        return done.others or None
    removed = len(population) < population.size
    places: dict[str, Any] = {"ids": population.ids, "size": population.size} if removed else {}
    metrics = Mapped(done.metrics, **places)
    return (metrics, done.others) if done.others else metrics


def _row_of(population: Population, index: SupportsIndex) -> int:
    """The row of a member, by its number."""
    try:
        number = operator.index(index)
    except TypeError:
        raise TypeError(
            f"pop[...] takes the number of one member, such as pop[0]; it was given {index!r:.60}"
        ) from None
    ids = _tree.to_numpy(population.ids)
    rows = np.flatnonzero(ids == number)
    if rows.size:
        return int(rows[0])
    if len(ids) == population.size:
        raise IndexError(
            f"the members are pop[0] to pop[{len(ids) - 1}]; there is no pop[{number}]"
        )
    raise IndexError(
        f"pop[{number}] is not there: {population.size - len(ids)} of {population.size} members "
        f"have been removed, and the others are {ids.tolist()}"
    )


def _rows_at(arrays: list[Any], row: int) -> list[Array]:
    # With an index on the device, so that each member is the same program.
    rows = cast("list[Array]", cast("Any", _rows_of)(arrays, jax.device_put(np.uint32(row))))
    return [_on_one_device(x) for x in rows]


def _on_one_device(array: Array) -> Array:
    """An array of a member on a mesh, on its first device, since the member is one alone."""
    devices = array.devices()
    return array if len(devices) == 1 else jax.device_put(array, min(devices, key=_id_of))


def _id_of(device: Any) -> int:
    return device.id


@jax.jit
def _rows_of(arrays: list[Array], row: Array) -> list[Array]:
    # A Python number of all members is an array without axes once steps have run.
    return [lax.dynamic_index_in_dim(x, row, keepdims=False) if x.ndim else x for x in arrays]


def _kind(population: Population) -> type[Experiment]:
    return type(cast("Experiment", population.members))


def _first(population: Population) -> Experiment:
    program, arrays = split(cast("Experiment", population.members))
    return program.merge(_rows_at(arrays, 0))


def _members_second(outputs: Array) -> Array:
    return jnp.swapaxes(outputs, 0, 1) if jnp.ndim(outputs) > 1 else outputs


def _no_check(batches: Batch) -> None:
    del batches
