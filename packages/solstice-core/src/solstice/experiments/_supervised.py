"""SupervisedExperiment: trains one model on a Task; the base of ready-made Experiments."""

from collections.abc import Callable
from functools import partial
from typing import Generic, Self, TypedDict, TypeVar, cast, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._arguments import instance, whole
from solstice._batch import describe_batch, is_traced, num_rows
from solstice._errors import DataError
from solstice._metrics import Metrics
from solstice._replace import replace
from solstice._signatures import called_with
from solstice._types import Adaptable, AnyArray, Batch, Inputs, ModelOutputs, Outputs, Targets
from solstice.compat import OptState, Params, State
from solstice.experiments._checks import (
    check_lengths,
    check_mask,
    parts_of,
    shape_of,
    spread,
    unmasked,
)
from solstice.experiments._gradients import Forward
from solstice.experiments._learner import Learner
from solstice.experiments._ready_made import ReadyMadeExperiment
from solstice.experiments._task import LossFunction, MetricsFunction, Task, is_elementwise
from solstice.metrics import WithLoss

_TaskT = TypeVar("_TaskT", bound=Task)


class Options(TypedDict, total=False):
    """`def __init__(self, ..., **options: Unpack[Options])`: options of all ready-made kinds.

    Attributes:
        sample_input: features of a batch of any size, for the model to be initialised with. By
            default, the first batch is used.
        loss: `loss(outputs, targets)`, not averaged, in place of the loss of the task.
        metrics: `metrics(outputs, targets, mask)`, in place of the metrics of the task.
        micro_batches: number of parts into which a batch is cut for training, 1 or more.
    """

    sample_input: Inputs
    loss: LossFunction | None
    metrics: MetricsFunction | None
    micro_batches: int


class SupervisedExperiment(ReadyMadeExperiment, Generic[_TaskT]):
    """`SupervisedExperiment(model, optax.adam(3e-4), task)`: one model that learns a task.

    ```python
    exp = SupervisedExperiment(model, optax.adam(3e-4), Ranking(top=10))
    exp = exp.train(train_ds, num_epochs=5)
    exp.test(test_ds)["loss"]
    ```

    The ready-made Experiments with one loss are built on it, and those of other packages can be.
    Its steps are final: to change the loss or the metrics, write a `Task`. For a new kind of
    Experiment, write a subclass with an `__init__` that creates the task:

    ```python
    class RankingExperiment(SupervisedExperiment[Ranking]):
        def __init__(self, model, optimizer, top=10, *, seed=0, **options: Unpack[Options]):
            super().__init__(model, optimizer, Ranking(top), seed=seed, **options)
    ```

    Args:
        model: a `solstice.compat.Model`, or a model of any framework with an adapter.
        optimizer: a `solstice.compat.Optimizer`, or an optimiser with an adapter.
        task: a `Task`.
        seed: an integer or a PRNG key, for the initial weights and for randomness in training.
        sample_input, loss, metrics, micro_batches: see `Options`.

    Attributes:
        learner: a `Learner`: the model, the optimiser and the state of both.
        task: the Task.
        params, state, opt_state, step: those of the learner.

    Raises:
        ValueError: `micro_batches` is below 1.
        TypeError, solstice.compat.AdapterError: `task` is not a Task, or has a leaf that is not an
            array; there is no adapter for the model or optimiser; or a param of the model is not a
            floating-point array.
        DataError: in a step, the task refuses the batch or the outputs of the model.
    """

    learner: Learner
    task: _TaskT
    loss: LossFunction | None = eqx.field(static=True)
    metrics: MetricsFunction | None = eqx.field(static=True)
    micro_batches: int = eqx.field(static=True)

    def __init__(
        self,
        model: Adaptable,
        optimizer: Adaptable,
        task: _TaskT,
        *,
        seed: int | Array = 0,
        sample_input: Inputs = None,
        loss: LossFunction | None = None,
        metrics: MetricsFunction | None = None,
        micro_batches: int = 1,
    ) -> None:
        self.task = _checked(task)
        self.loss = called_with("loss", loss, "loss=optax.huber_loss", "outputs", "targets")
        names = ("outputs", "targets", "mask")
        example = f"metrics=lambda {', '.join(names)}: ..."
        self.metrics = called_with("metrics", metrics, example, *names)
        self.micro_batches = whole("micro_batches", micro_batches)
        self.learner = Learner(
            model, optimizer, seed=seed, sample_input=sample_input, free_axes=task.free_axes
        )

    @property
    def params(self) -> Params:
        """The model's params; None before initialisation."""
        return self.learner.params

    @property
    def state(self) -> State:
        """The model's state, such as batch statistics; None before initialisation."""
        return self.learner.state

    @property
    def opt_state(self) -> OptState:
        """The optimiser's state; None before initialisation."""
        return self.learner.opt_state

    @property
    def step(self) -> Array:
        """Training steps taken, an int32 scalar."""
        return self.learner.step

    def with_params(self, params: Params) -> Self:
        """`exp = exp.with_params(pretrained)`: start from these weights.

        Raises:
            ValueError: as `Learner.with_params`.
        """
        return replace(self, learner=self.learner.with_params(params))

    @final
    def __call__(self, x: Inputs) -> ModelOutputs:
        """`outputs = exp(x)`: the model's outputs, with the weights for evaluation.

        Raises:
            DataError: the model has not been initialised, or `x` has other shapes.
        """
        return self.task.outputs(self.learner(x), x, None)

    @final
    def setup(self, batch: Batch) -> Self:
        """Initialises the model from the shapes of the first batch; a second call does nothing."""
        if self.learner.inputs is not None:
            return self
        return replace(self, learner=self.learner.setup(_split(self.task, *unmasked(batch))[0]))

    @final
    def check_batch(self, batch: Batch) -> None:
        """Raises a DataError if values are invalid, such as a label out of range.

        It runs on the host, since a compiled step cannot raise.
        """
        task, (bare, mask) = self.task, unmasked(batch)
        _split(task, bare, mask)
        type(task).check_values(task, bare, mask)

    @final
    def stacked_check(self) -> Callable[[Batch], None] | None:
        """The `check_values` of an elementwise task; None for another."""
        check = type(self.task).check_values
        return partial(_check_stacked, self.task) if is_elementwise(check) else None

    @final
    def train_step(self, batch: Batch) -> tuple[Self, Metrics]:
        """`exp, metrics = exp.train_step(batch)`: one update."""
        self = self._ready(batch)
        learner, metrics = self.learner.update(
            self._objective, batch, micro_batches=self.micro_batches
        )
        return replace(self, learner=learner), metrics

    @final
    def eval_step(self, batch: Batch) -> tuple[Self, Metrics]:
        """`exp, metrics = exp.eval_step(batch)`: metrics with the weights for evaluation."""
        self = self._ready(batch)
        return self, self.learner.evaluate(self._objective, batch)

    @final
    def predict_step(self, batch: Batch) -> Outputs:
        """`predictions = exp.predict_step(x)`: the batch is `x` alone, or `x` and targets."""
        return self.task.predictions(self(self._inputs(batch)))

    def _inputs(self, batch: Batch) -> Inputs:
        """The inputs of a batch for prediction, without targets.

        A tuple is ambiguous: two inputs, or inputs and targets. The number of inputs at
        initialisation decides.
        """
        whole, _ = unmasked(batch)
        first = self.task.inputs(whole)
        count = len(self.learner.inputs or ())
        is_all = len(_tree.leaves(whole)) == count != len(_tree.leaves(first))
        return whole if is_all else first

    def _ready(self, batch: Batch) -> Self:
        """The initialised Experiment, after all checks of the batch."""
        self = self.setup(batch)
        x, _, _ = _split(self.task, *unmasked(batch))
        num_rows(x)
        self.learner.check_inputs(x)
        # A traced batch has no values: the Trainer has checked them before.
        if not is_traced(batch):
            self.check_batch(batch)
        return self

    def _objective(self, model: Forward, batch: Batch) -> tuple[Array, AnyArray | None, Metrics]:
        x, y, mask = _split(self.task, *unmasked(batch))
        outputs, size = self.task.outputs(model(x), x, y), num_rows(y)
        counts = jnp.ones(size, bool) if mask is None else jnp.asarray(mask)
        y = _blanked(y, mask)
        losses = self.loss(outputs, y) if self.loss else self.task.losses(outputs, y, counts)
        check_losses(losses, size)
        weights = self.task.weights(y, mask, losses)
        _check_weights(self.task, weights, losses)
        weights = None if weights is None else spread(weights, losses)
        metrics = (self.metrics or self.task.metrics)(outputs, y, counts)
        return losses, weights, WithLoss(metrics, losses, weights)


def _check_stacked(task: Task, batches: Batch) -> None:
    type(task).check_values(task, *parts_of(batches))


def _split(
    task: Task, batch: Batch, mask: AnyArray | None
) -> tuple[Inputs, Targets, AnyArray | None]:
    """Inputs, targets and mask of a batch, after the checks of shapes.

    It calls the functions of the class: a bound method of an `equinox.Module` costs 10 us, and this
    runs on the host for every batch.
    """
    kind = type(task)
    parts = cast("object", kind.split(task, batch, mask))
    if not isinstance(parts, tuple) or len(cast("tuple[object, ...]", parts)) != 3:
        raise TypeError(
            f"{kind.__name__}.split must return `x, targets, mask`, with None for no mask; it "
            f"returned {describe_batch(parts)}"
        )
    x, y, mask = cast("tuple[Inputs, Targets, AnyArray | None]", parts)
    check_lengths(x, y)
    kind.check(task, x, y)
    check_mask(mask, y)
    return x, y, mask


def check_losses(losses: Array, size: int) -> None:
    """Raises a ValueError unless there is a loss for each of `size` examples."""
    if shape_of(losses)[:1] != (size,):
        raise ValueError(
            f"the loss must be one number for each of the {size} examples, of shape [n] or "
            f"[n, ...], without a mean; it is {describe_batch(losses)}"
        )
    if not jnp.issubdtype(losses.dtype, jnp.inexact):
        raise ValueError(
            f"the loss is {describe_batch(losses)}, which has no gradient, so nothing would be "
            f"learned: compute it from the outputs of the model, in floats"
        )


def _check_weights(task: Task, weights: AnyArray | None, losses: Array) -> None:
    if weights is None:
        return
    if not hasattr(weights, "ndim"):
        raise TypeError(
            f"{type(task).__name__}.weights must return an array or None; it returned "
            f"{weights!r:.60}"
        )
    if weights.ndim > losses.ndim:
        raise DataError(
            f"the loss has one number for each example, but the mask one for each element: "
            f"{describe_batch(weights)}. Give a mask of shape [n], or a loss without a mean"
        )


def _blanked(targets: Targets, mask: AnyArray | None) -> Targets:
    """Targets with 0 where they are masked: NaN times a weight of 0 would still be NaN."""
    if mask is None:
        return targets

    def blank(y: AnyArray) -> Array:
        return jnp.where(spread(mask, y), y, jnp.zeros_like(y))

    return _tree.map(blank, targets)


def _checked(task: _TaskT) -> _TaskT:
    instance("task", task, Task, "a Task, such as `Ranking()`")
    for path, leaf in _tree.leaves_by_path(task):
        if not isinstance(leaf, Array | np.ndarray | np.generic):
            kind = type(task).__name__
            raise TypeError(
                f"task: `{kind}{path}` is {leaf!r:.60}, which a compiled step would take as data. "
                f"Declare it as `{path[1:]}: {type(leaf).__name__} = eqx.field(static=True)`, or "
                f"give it an array"
            )
    return task
