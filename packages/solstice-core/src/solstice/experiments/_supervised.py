"""SupervisedExperiment: trains one model on a Task; the base of ready-made Experiments."""

from collections.abc import Callable
from functools import partial
from typing import Generic, Self, TypedDict, TypeVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._arguments import instance, whole
from solstice._batch import is_traced, num_rows
from solstice._errors import DataError
from solstice._metrics import Metrics
from solstice._replace import replace
from solstice._signatures import accepts, called_with, requires
from solstice._types import Adaptable, AnyArray, Batch, Inputs, ModelOutputs, Outputs, Targets
from solstice.compat import OptState, Params, State
from solstice.experiments._checks import unmasked
from solstice.experiments._gradients import Forward
from solstice.experiments._learner import Learner
from solstice.experiments._per_example import PerExample
from solstice.experiments._ready_made import ReadyMadeExperiment
from solstice.experiments._skipped import skipped_between
from solstice.experiments._task import LossFunction, MetricsFunction, Task, is_elementwise
from solstice.experiments._task_batch import (
    blanked,
    check_losses,
    check_values,
    taken_apart,
    weights_of_losses,
    weights_of_metrics,
    without_weights,
)
from solstice.metrics import WithLoss, WithSkipped

_TaskT = TypeVar("_TaskT", bound=Task)


class Options(TypedDict, total=False):
    """`def __init__(self, ..., **options: Unpack[Options])`: options of all ready-made kinds.

    Attributes:
        sample_input: features of a batch of any size, for the model to be initialised with. By
            default, the first batch is used.
        loss: `loss(outputs, targets)`, not averaged, in place of the loss of the task.
        metrics: `metrics(outputs, targets, mask, weights=None)`, in place of the metrics of the
            task; without the parameter `weights`, batches with weights are refused.
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
        self.metrics = called_with("metrics", metrics, example, *names, option="weights")
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

    def with_params(self, params: Params, state: State = None) -> Self:
        """`exp = exp.with_params(pretrained)`: start from these weights.

        Args:
            params: the weights.
            state: the model's state, such as the averages of BatchNorm; by default it stays.

        Raises:
            ValueError: as `Learner.with_params`.
        """
        return replace(self, learner=self.learner.with_params(params, state))

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
        return replace(self, learner=self.learner.setup(taken_apart(self.task, batch).inputs))

    @final
    def check_batch(self, batch: Batch) -> None:
        """Raises a DataError if values are invalid, such as a label out of range.

        It runs on the host, since a compiled step cannot raise.
        """
        taken_apart(self.task, batch)
        check_values(self.task, batch)

    @final
    def stacked_check(self) -> Callable[[Batch], None] | None:
        """The `check_values` of an elementwise task; None for another."""
        check = type(self.task).check_values
        return partial(check_values, self.task) if is_elementwise(check) else None

    @final
    def train_step(self, batch: Batch) -> tuple[Self, Metrics]:
        """`exp, metrics = exp.train_step(batch)`: one update."""
        self = self._ready(batch)
        learner, metrics = self.learner.update(
            self._objective, batch, micro_batches=self.micro_batches
        )
        skipped = skipped_between(self.opt_state, learner.opt_state)
        counted = metrics if skipped is None else WithSkipped(metrics, skipped)
        return replace(self, learner=learner), counted

    @final
    def per_example(self, batch: Batch) -> PerExample:
        """`found = exp.per_example(batch)`: what each example does to a training step.

        `found.loss` and `found.gradient_norm` have shape [n]; see `Learner.per_example`.
        `solstice.blame` uses it.
        """
        self = self._ready(batch)
        return self.learner.per_example(self._objective, batch, micro_batches=self.micro_batches)

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
        x = taken_apart(self.task, batch).inputs
        num_rows(x)
        self.learner.check_inputs(x)
        # A traced batch has no values: the Trainer has checked them before.
        if not is_traced(batch):
            self.check_batch(batch)
        return self

    def _objective(self, model: Forward, batch: Batch) -> tuple[Array, AnyArray | None, Metrics]:
        x, y, mask, weights = taken_apart(self.task, batch)
        outputs, size = self.task.outputs(model(x), x, y), num_rows(y)
        counts = jnp.ones(size, bool) if mask is None else jnp.asarray(mask)
        y = blanked(y, mask, weights)
        losses = self.loss(outputs, y) if self.loss else self.task.losses(outputs, y, counts)
        check_losses(losses, size)
        shares = weights_of_losses(self.task, y, mask, weights, losses)
        metrics = self._metrics(outputs, y, counts, weights)
        return losses, shares, WithLoss(metrics, losses, shares)

    def _metrics(
        self, outputs: ModelOutputs, y: Targets, counts: Array, weights: AnyArray | None
    ) -> Metrics:
        function = self.metrics or self.task.metrics
        if weights is None:
            missing = {"weights": None} if requires(function, "weights") else {}
            return function(outputs, y, counts, **missing)
        if not accepts(function, "weights"):
            raise DataError(without_weights(self.task, is_own=self.metrics is None))
        return function(outputs, y, counts, weights=weights_of_metrics(weights, counts))


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
