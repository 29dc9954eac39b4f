"""Metrics: the base class, and the metrics of a step's outputs."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, Self, cast, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._batch import num_examples
from solstice._errors import ExperimentError
from solstice._per_member import PerMember
from solstice._sums import Counts, Totals, at_least_float32
from solstice._types import Batch, Outputs


class Metrics(eqx.Module):
    """Counts and sums of one batch that merge into those of an epoch: subclass it.

    ```python
    class Accuracy(solstice.Metrics):
        correct: jax.Array
        count: jax.Array

        def __init__(self, preds, labels):
            self.correct = jnp.sum(preds == labels)
            self.count = jnp.asarray(preds.shape[0])

        def merge(self, other):
            return solstice.replace(
                self, correct=self.correct + other.correct, count=self.count + other.count
            )

        def compute(self):
            return {"accuracy": self.correct / self.count}
    ```

    Keep sums, counts and maxima, and divide only in `compute`. The metric of an epoch is then
    the metric of all its examples, for any batch sizes. Declare settings (a number of classes, a
    name) as `equinox.field(static=True)`.

    Attributes:
        can_raise: whether `compute` may raise an error. The Trainer calls `compute` at the end of
            each epoch, so that an error ends the run there. `can_raise = False`, in the class that
            defines `compute`, promises that it raises none, has no effects, and takes NumPy
            arrays. It is then called only if somebody reads the metrics.
        is_vectorized: whether `compute` also takes arrays with the members of a population on one
            more axis in front, and returns values with this axis. `is_vectorized = True`, in the
            class that defines `compute`, promises it. `Mapped` then calls it once for all members.
    """

    can_raise: ClassVar[bool] = True
    is_vectorized: ClassVar[bool] = False

    @abstractmethod
    def merge(self, other: Any, /) -> Self:
        """`total = total.merge(batch_metrics)`: the metrics of both sets of examples.

        `other` is of the same class. `merge` must be associative, and work under `jax.jit`, in
        `jax.lax.scan` and on the host.
        """

    @abstractmethod
    def compute(self) -> Mapping[str, Any]:
        """`metrics.compute()["accuracy"]`: the final values by name, scalars or arrays."""


@runtime_checkable
class MergesSteps(Protocol):
    """Metrics that grow, and merge the steps of a compiled call at once."""

    def of_steps(self, count: int) -> Metrics:
        """The metrics of the first `count` steps, from arrays with the steps on axis 0."""
        ...


class Means(Metrics):
    """The mean over examples of each scalar among a step's outputs."""

    can_raise = False
    is_vectorized = True
    sums: Totals
    count: Counts

    def merge(self, other: Self, /) -> Self:
        return type(self)(self.sums + other.sums, self.count + other.count)

    def compute(self) -> dict[str, Any]:
        # NumPy divides in float64, which JAX does not have by default.
        xp = jnp if self.sums.is_traced else np
        # By the class, because Equinox makes a module of a method that is read from a module.
        count = Counts.floats(self.count, xp)["count"]
        with np.errstate(invalid="ignore"):  # the mean of no examples is NaN
            return {n: total / count for n, total in Totals.floats(self.sums, xp).items()}


class Beside(Metrics):
    """Several metrics of one step: the `Metrics` in its outputs, and the means of its scalars."""

    can_raise = False  # beyond its parts, and two equal names, which show in the first epoch
    is_vectorized = True
    parts: tuple[Metrics, ...]
    names: tuple[str, ...] = eqx.field(static=True)
    """The prefix of the names of each part; "" is no prefix."""

    def merge(self, other: Self, /) -> Self:
        pairs = zip(self.parts, other.parts, strict=True)
        return type(self)(tuple(mine.merge(theirs) for mine, theirs in pairs), self.names)

    def compute(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, part in zip(self.names, self.parts, strict=True):
            found = {f"{name}/{n}" if name else n: v for n, v in computed(part).items()}
            twice = {*found} & {*values}
            if twice:
                raise ValueError(f"two metrics of a step are named {min(twice)!r}: rename one")
            values |= found
        return values


def computed(metrics: Metrics) -> Mapping[str, Any]:
    """`metrics.compute()`, in half of the time: Equinox makes a module of each bound method."""
    return type(metrics).compute(metrics)


def as_metrics(outputs: Outputs, batch: Batch) -> Metrics | None:
    """The metrics in a step's outputs: `Metrics` unchanged, scalars as weighted `Means` by path.

    A single scalar is "loss". `Metrics` inside the outputs get their path as a prefix, except a
    single one in an unnamed place, as in `(metrics, outputs)`. None if there are no metrics.
    """
    if isinstance(outputs, Metrics):
        return outputs
    leaves = _by_path(outputs)
    parts = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Metrics)}
    scalars = {path or "loss": leaf for path, leaf in leaves.items() if _is_scalar(leaf)}
    means = {"": _means(scalars, batch)} if scalars else {}
    if not parts:
        return means.get("")
    if len(parts) == 1 and all(part.isdigit() for part in next(iter(parts)).split("/")):
        return Beside((*means.values(), *parts.values()), ("",) * (len(means) + 1))
    return Beside((*means.values(), *parts.values()), (*means, *parts))


def without_metrics(outputs: Outputs) -> dict[str, Any]:
    """The leaves of a step's outputs that give no metrics, by path."""
    if outputs is None or isinstance(outputs, Metrics):
        return {}
    return {
        path or "outputs": leaf
        for path, leaf in _by_path(outputs).items()
        if not isinstance(leaf, Metrics) and not _is_scalar(leaf)
    }


def _by_path(outputs: Outputs) -> dict[str, Any]:
    """The leaves by path; `Metrics` and None are leaves."""

    def is_leaf(node: object) -> bool:
        return node is None or isinstance(node, Metrics)

    leaves = _tree.leaves_with_slashes(outputs, is_leaf)
    found = dict(leaves)
    if len(found) < len(leaves):
        paths = [path for path, _ in leaves]
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ExperimentError(f"two outputs of a step have the path {twice!r}: rename one")
    return found


def _means(scalars: Mapping[str, Any], batch: Batch) -> Means:
    count = num_examples(batch)
    sums = {name: _times(value, count) for name, value in scalars.items()}
    return Means(Totals(sums), Counts({"count": count}))


def _times(value: object, count: int) -> Array:
    """`value * count` in at least float32; 0 for an empty batch, because its mean is often NaN."""
    value = at_least_float32(value)
    return value * count if count else jnp.zeros_like(value)


def may_raise(metrics: Metrics) -> bool:
    """Whether `compute` of metrics, or of others within them, may raise an error."""
    return not _promises(metrics, "can_raise", False)


def takes_members(metrics: Metrics) -> bool:
    """Whether `compute` of metrics, and of others within them, takes those of all members."""
    return _promises(metrics, "is_vectorized", True)


def _promises(metrics: Metrics, name: str, value: bool) -> bool:
    """Whether metrics, and all others within them, have this value of a class attribute."""

    def is_within(node: object) -> bool:
        return node is not metrics and isinstance(node, Metrics)

    # Of the class that defines it: a subclass with another `compute` has promised nothing.
    owner = next(kind for kind in type(metrics).__mro__ if "compute" in vars(kind))
    inner = [node for node in _tree.leaves(metrics, is_within) if is_within(node)]
    own = vars(owner).get(name, not value) is value
    return own and all(_promises(node, name, value) for node in inner)


def to_host(metrics: Metrics | None) -> dict[str, Any]:
    """The computed values on the host: scalars as Python numbers, others as NumPy arrays."""
    if metrics is None:
        return {}
    values = cast("object", computed(metrics))
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{type(metrics).__name__}.compute must return values by name, such as "
            f'{{"accuracy": 0.9}}; it returned {values!r:.60}'
        )
    return on_host(cast("Mapping[str, Any]", values))


def on_host(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values on the host; those of an inner mapping get its name as a prefix: "val/a"."""
    numbers = {name: _number(value) for name, value in values.items()}
    if not any(number is None for number in numbers.values()):
        return numbers
    flat = by_name(values)
    read = jax.device_get(list(flat.values()))  # one transfer, and the order is kept
    return {
        # The transfer makes a plain array of one that names its axis.
        name: value if isinstance(value, PerMember) else _plain(found)
        for (name, value), found in zip(flat.items(), read, strict=True)
    }


def _number(value: Any) -> object:
    """A number of NumPy or Python as one of Python; None for all else."""
    if isinstance(value, np.generic):
        return cast("object", value.item())
    return value if type(value) in (bool, int, float) else None


def by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values where they are; those of an inner mapping get its name as a prefix."""
    return dict(_flat(values))


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            within = cast("Mapping[str, Any]", value)
            yield from ((f"{name}/{part}", leaf) for part, leaf in _flat(within))
        else:
            yield name, value


def _plain(value: Any) -> object:
    return np.asarray(value).item() if np.ndim(value) == 0 else np.asarray(value)


def _is_scalar(value: object) -> bool:
    """Whether it is a real number or boolean, or an array of shape [] of one, or its type."""
    if isinstance(value, bool | int | float):
        return True
    dtype: Any = getattr(value, "dtype", None)
    real = (jnp.bool_, jnp.integer, jnp.floating)
    return getattr(value, "shape", None) == () and any(jnp.issubdtype(dtype, r) for r in real)
