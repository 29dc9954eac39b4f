"""`blame`: the examples of one step of a run, by what they did to it."""

from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal

import numpy as np

from solstice import checkpoint
from solstice._arguments import choice, whole
from solstice._batch import arrays_of
from solstice._callback import Callback
from solstice._engine import MeshLike, Sharding
from solstice._experiment import Experiment, check_experiment
from solstice._record import Record
from solstice._signatures import called_with
from solstice._types import Batch, Dataset
from solstice.runs._at import Given, Replayed, replayed
from solstice.runs._examples import LOSS, Losses, Measured, measured


@dataclass(frozen=True)
class Example:
    """`found.worst(1)[0].index`: one example of a step.

    Attributes:
        row: its row in the batch.
        index: its row in the arrays of the data set; None if the data set cannot say.
        loss: its loss.
        gradient_norm: the norm of its part of the gradient; see `Blame.how`.
    """

    row: int
    index: int | None
    loss: float
    gradient_norm: float


@dataclass(frozen=True, repr=False)
class Blame:
    """`print(solstice.blame(...))`: the examples of one training step.

    Attributes:
        step: the number of the step, from 1.
        epoch, batch_index: the epoch, and the batch in it, from 0.
        loss: the loss of each example, NumPy floats of shape [n], in the order of the batch.
        gradient_norm: the norm of each example's part of the gradient, of shape [n]. If an input
            is NaN or infinite, those of other examples may be NaN too, and their losses are not.
        index: the row of each example in the arrays of the data set, integers of shape [n]; None
            if the data set cannot say. `solstice.data.batches` and arrays with a `batch_size` can.
        batch: the batch, NumPy arrays.
        how: how the numbers were computed, and where they are approximate.
    """

    step: int
    epoch: int
    batch_index: int
    loss: np.ndarray[Any, Any]
    gradient_norm: np.ndarray[Any, Any]
    index: np.ndarray[Any, np.dtype[np.int64]] | None
    batch: Batch = field(repr=False)
    how: str

    def worst(
        self, num: int = 10, *, by: Literal["gradient_norm", "loss"] | None = None
    ) -> list[Example]:
        """`found.worst(10)`: the examples that did most to the step, in order.

        Args:
            num: the number of examples; all, if there are fewer.
            by: "gradient_norm" or "loss"; by default the better of an example's places in these two
                rankings. A wrong label shows most in the loss, and an input out of range in the
                gradient. NaN comes first.

        Raises:
            ValueError: `num` is below 1, or `by` is something else.
        """
        places = {
            # The loss too, because NaN in one example can make the gradients of all NaN.
            "gradient_norm": _places(self.gradient_norm, self.loss),
            "loss": _places(self.loss, self.gradient_norm),
        }
        num, both = whole("num", num), np.sort([*places.values()], axis=0)
        order = np.lexsort(both[::-1]) if by is None else places[choice("by", by, places)].argsort()
        return [self._example(int(row)) for row in order[:num]]

    def _example(self, row: int) -> Example:
        index = None if self.index is None else int(self.index[row])
        return Example(row, index, float(self.loss[row]), float(self.gradient_norm[row]))

    def __repr__(self) -> str:
        size, shown = len(self.loss), self.worst()
        lines = [
            f"step {self.step:,} (epoch {self.epoch}, batch {self.batch_index}): the worst "
            f"{len(shown)} of {size:,} examples",
            f"{'row':>8}{'index':>12}{'loss':>14}{'gradient norm':>16}",
            *(
                f"{one.row:>8,}{'?' if one.index is None else f'{one.index:,}':>12}"
                f"{one.loss:>14.5g}{one.gradient_norm:>16.5g}"
                for one in shown
            ),
            self.how,
        ]
        return "\n".join(lines)


def _places(values: np.ndarray[Any, Any], then: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The place of each example, from 0, by one number and then by another."""
    return np.lexsort((*_descending(then), *_descending(values))).argsort()


def _descending(values: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """Keys of `np.lexsort`, the last of which counts most: NaN first, then the largest."""
    is_nan = np.isnan(values)
    return np.where(is_nan, 0, -values), ~is_nan


def blame(
    directory: str | PathLike[str],
    *,
    step: int,
    experiment: Experiment,
    train_ds: Dataset,
    val_ds: Dataset = None,
    batch_size: int | None = None,
    loss: Losses | None = None,
    mesh: MeshLike | None = None,
    sharding: Sharding = "replicated",
) -> Blame:
    """`print(solstice.blame("runs/a", step=340, experiment=make(), train_ds=train_ds))`.

    It ranks the examples of the batch of a training step: which of them made its loss or its
    gradient large? The run is replayed exactly to the start of this step, as by `solstice.at`.

    The ready-made Experiments compute the loss of each example, and its part of the gradient, from
    the model on the whole batch with the random numbers of the step. The parts add up to the
    gradient of the step, also under BatchNorm and Dropout and in micro-batches. Under BatchNorm,
    the loss of an example also depends on the others. An Experiment of yours can do the same by a
    method `per_example(batch)`, as in `Learner.per_example`, or by the argument `loss`. Without
    these, each example goes alone through `train_step`: "gradient_norm" is then the norm of the
    change of the params, with what the optimiser makes of the gradient, and BatchNorm sees one
    example.

    Args:
        directory: the folder of the run, or one of its checkpoints.
        step: the number of the step, from 1; a log line of step 340 covers this batch.
        experiment: an Experiment made in the same way as that of the run; it is not changed.
        train_ds: the data set of the run, as given to `fit`.
        val_ds: its validation set, for an Experiment whose `epoch_step` needs its metrics.
        batch_size: as given to `fit`; by default the number that the run had.
        loss: `losses = loss(exp, batch)` of shape [n] or [n, ...], without a mean. The gradient is
            that of their mean in `exp.params` or `exp.learner.params`, else in all floating-point
            arrays of the Experiment.
        mesh: the devices, as given to the Trainer of the run.
        sharding: how the Experiment lies on them, as given to that Trainer.

    Raises:
        CheckpointError: as `solstice.at`.
        TypeError: the Experiment is a `Population`, or `loss` is not a function.
        ValueError: `step` is below 1, or `loss` does not return one number or more per example.
        DataError: without `loss`, the arrays of the batch differ in length on axis 0.
    """
    check_experiment(experiment)
    _check_alone(experiment, step)
    folder, step = checkpoint.place(directory, "directory"), whole("step", step, 1)
    called_with("loss", loss, LOSS, "exp", "batch")
    given = Given(experiment, train_ds, val_ds, batch_size, mesh, sharding)
    seen = _Watch(step)
    run = replayed(folder, given, since=step - 1, step=step, callbacks=[seen])
    found = measured(seen.before, arrays_of(seen.batch), loss, mesh, sharding)
    return _blamed(seen, run, given, found)


def _blamed(seen: "_Watch", run: Replayed, given: Given, found: Measured) -> Blame:
    at, batch_index = seen.at, seen.at.epoch_step - 1
    rows = run.options.rows(given.train_ds, run.batch_size, at.epoch, batch_index)
    return Blame(
        step=at.step,
        epoch=at.epoch,
        batch_index=batch_index,
        loss=found.loss,
        gradient_norm=found.norm,
        index=rows,
        batch=seen.batch,
        how=found.how,
    )


def _check_alone(experiment: Experiment, step: int) -> None:
    from solstice.population import Population  # most runs have none

    if isinstance(experiment, Population):
        raise TypeError(
            f"the run trains a Population, and each of its members has gradients of its own. Write "
            f"`solstice.at(..., step={step - 1})[0].per_example(batch)` for the first one"
        )


class _Watch(Callback):
    """Keeps the Experiment before a step, and its batch."""

    modes, needs = ("train",), ("batch", "experiment")

    def __init__(self, step: int) -> None:
        self.every = self._step = step
        self.at: Any = None
        self.batch: Batch = None
        self.before: Any = None

    def on_step_start(self, record: Record) -> None:
        if record.step == self._step - 1:
            self.before = record.experiment

    def on_step_end(self, record: Record) -> None:
        if record.step == self._step:
            self.at, self.batch = record.only(), record.batch
