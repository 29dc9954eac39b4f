"""The loss and the gradient of each example of a batch, for any Experiment."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import equinox as eqx
import jax
import numpy as np
from jax import Array

from solstice import _tree
from solstice._batch import describe_batch, num_rows
from solstice._callback import Callback
from solstice._engine import MeshLike, Sharding
from solstice._errors import DataError
from solstice._experiment import Experiment, params_of
from solstice._record import Record
from solstice._trainer import Trainer
from solstice._types import Batch
from solstice.compat import norms_of

LOSS = "loss=lambda exp, batch: optax.l2_loss(exp.model(batch[0]), batch[1])"

Losses: TypeAlias = Callable[[Any, Any], Array]
"""`losses = loss(exp, batch)`: shape [n] or [n, ...], not averaged."""


class Measured(NamedTuple):
    """Two numbers for each example, NumPy arrays of shape [n], and what they are, in words."""

    loss: np.ndarray[Any, Any]
    norm: np.ndarray[Any, Any]
    how: str


def measured(
    experiment: Experiment,
    batch: Batch,
    loss: Losses | None,
    mesh: MeshLike | None,
    sharding: Sharding,
) -> Measured:
    """The numbers of each example: by `loss`, by `per_example`, or by itself."""
    if loss is not None:
        return _by_function(experiment, batch, loss)
    if hasattr(experiment, "per_example"):
        return _by_itself(experiment, batch)
    watch = _Alone(experiment)
    trainer = Trainer([watch], mesh=mesh, sharding=sharding)
    return _alone(experiment, batch, trainer, watch)


_PARTS = "The gradients of the examples add up to that of the step"


def _by_itself(experiment: Any, batch: Batch) -> Measured:
    def compute(experiment: Any, batch: Batch) -> tuple[Array, Array]:
        losses, norms = experiment.per_example(batch)
        return losses, norms

    losses, norms = jax.device_get(eqx.filter_jit(compute)(experiment, batch))
    how = f"{_PARTS}."
    if _tree.leaves(getattr(getattr(experiment, "learner", None), "state", None)):
        how += (
            " The model has a state: with statistics of a batch, as in BatchNorm, the loss of an "
            "example also depends on the others."
        )
    return Measured(losses, norms, how)


def _by_function(experiment: Experiment, batch: Batch, loss: Losses) -> Measured:
    """By a function of the user, whose gradient is taken in the params."""
    from solstice.experiments import check_losses, contributions_of

    size = num_rows(batch)
    mine = {id(leaf) for leaf in _tree.leaves(params_of(experiment)) if _tree.is_inexact(leaf)}

    def is_param(leaf: object) -> bool:
        return id(leaf) in mine

    params, rest = cast("Any", eqx.partition(experiment, _tree.map(is_param, experiment)))

    def compute(params: Any, rest: Any, batch: Batch) -> tuple[Array, Array]:
        def losses(params: Any) -> Array:
            found = loss(eqx.combine(params, rest), batch)
            check_losses(found, size)
            return found

        return contributions_of(losses, params)

    losses, norms = jax.device_get(eqx.filter_jit(compute)(params, rest, batch))
    how = "The gradients of the examples add up to that of the mean of `loss`."
    return Measured(losses, norms, how)


def _alone(experiment: Experiment, batch: Batch, trainer: Trainer, watch: "_Alone") -> Measured:
    """By the step of the Experiment on a batch of one example at a time."""
    size = num_rows(batch)
    if any(np.shape(leaf)[:1] != (size,) for leaf in _tree.leaves(batch)):
        raise DataError(
            f"the examples of the batch cannot be taken apart, because its arrays differ in length "
            f"on axis 0: {describe_batch(batch)}. Give the losses by a function, such as `{LOSS}`"
        )
    for row in range(size):
        example = _tree.row(batch, slice(row, row + 1))
        # A second batch, which the step never sees, because `epoch_step` ends an epoch.
        trainer.fit(experiment, [example, example], max_steps=1)
    names = " + ".join(watch.names) or "unknown, because the step returns none"
    return Measured(
        np.asarray(watch.losses),
        np.asarray(watch.norms),
        f"Approximate: each example went alone through `train_step`. The loss is {names}; the "
        f"norm is that of the change of the params, with what the optimiser makes of the gradient. "
        f"For gradients, give the losses by a function, such as `{LOSS}`.",
    )


class _Alone(Callback):
    """Keeps the loss of each step, and the norm of the change of the params."""

    modes, needs = ("train",), ("metrics", "experiment")

    def __init__(self, before: Experiment) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.names: list[str] = []
        self._before = before

    def on_step_end(self, record: Record) -> None:
        metrics = record.metrics
        self.names = ["loss"] if "loss" in metrics else [n for n in metrics if "loss" in n]
        loss = sum(float(metrics[name]) for name in self.names) if self.names else float("nan")
        self.losses.append(loss)
        self.norms.append(float(_norm_of_change(_params(self._before), _params(record.experiment))))


def _params(experiment: Experiment) -> list[Any]:
    return [leaf for leaf in _tree.leaves(params_of(experiment)) if _tree.is_inexact(leaf)]


def _norm_of_change_of(before: list[Array], after: list[Array]) -> Array:
    pairs = zip(before, after, strict=True)
    return norms_of([_tree.wide(new) - _tree.wide(old) for old, new in pairs], 0)[""]


_norm_of_change: Callable[[list[Array], list[Array]], Array] = jax.jit(_norm_of_change_of)
