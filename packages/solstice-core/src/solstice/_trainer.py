"""The Trainer: the loop over epochs, batches and callbacks."""

import copy
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import Any, TypeVar, cast

import numpy as np

from solstice._arguments import switch, whole, whole_or_none
from solstice._callback import Callback
from solstice._console import write_line
from solstice._engine._eager import EagerStepper
from solstice._engine._feed import BuffersByKind, StagingBuffers
from solstice._engine._interrupts import Guard, interrupts_guarded, waiting
from solstice._engine._placement import check_processes, warn_of_spread_state
from solstice._engine._prefetch import prefetched
from solstice._engine._step import Stepper
from solstice._errors import DataError
from solstice._experiment import Experiment, check_experiment
from solstice._record import Record, Snapshot
from solstice._run._callbacks import CallbackList, as_callbacks, before_monitors, check_callbacks
from solstice._run._pass import Pass
from solstice._run._resume import find_saved, has_ended, next_epoch
from solstice._run._run import Run
from solstice._run._validation import Validation
from solstice._types import Batch, Mode, Outputs
from solstice.data._arrays import arrays_of
from solstice.data._source import Source, open_source
from solstice.history import History

_E = TypeVar("_E", bound=Experiment)

_MAX_SIZE = 256
"""Largest array in the Trainer's default History, because each checkpoint stores the history."""


class Trainer:
    """`solstice.Trainer(callbacks=[...]).fit(exp, train_ds, val_ds, num_epochs=10)`.

    The Trainer runs the loop over epochs and batches. The Experiment defines the steps;
    callbacks show, log, monitor and save.

    A data set is a list of batches, any iterable of batches that can be iterated again (a
    `tf.data.Dataset`, a grain pipeline, a torch `DataLoader`, `solstice.data.batches(...)`), a
    function that makes an iterator (called once per epoch, with the epoch's number if it takes
    one), or, with `batch_size=`, a tree of arrays with the examples along axis 0. A generator
    serves for one epoch. Tensors become NumPy arrays; the last batch may be smaller.

    Args:
        callbacks: `solstice.Callback` objects; none by default.
        limit_train_batches: the most training batches per epoch.
        limit_val_batches: the most batches per evaluation.
        val_every_n_steps: validate at every n-th training step of the run, instead of after each
            epoch.
        prefetch: the number of batches that a thread reads ahead, for slow data sets. 0 uses no
            thread: for small steps, a thread costs more than it saves.
        steps_per_call: the most steps in one compiled call. By default chosen from the step's
            cost and the size of a batch (1 to 512); `trainer.explain()` shows the choice.
        fast_dev_run: run everything once, quickly: one epoch of one batch (True) or of n batches
            (a number n), and evaluations of the same length. Callbacks with side effects, such as
            loggers and checkpoints, are left out, and `resume` is ignored.
        overfit_batches: train on the first n batches only, always in the same order. A model that
            cannot overfit them has a bug.
        sanity_val_batches: evaluate n batches before the first step of `fit`, to find errors in the
            validation early. Callbacks do not see these batches, and the metrics are dropped.

    Attributes:
        callbacks: the callbacks, in the order of their calls.

    Raises:
        ValueError: a number is out of range, or not an integer.
        TypeError: `callbacks` is not a list of callbacks.

    The order at one step: the step, callbacks that log, validation, callbacks that monitor,
    callbacks that save.
    """

    def __init__(
        self,
        callbacks: Iterable[Callback] = (),
        *,
        limit_train_batches: int | None = None,
        limit_val_batches: int | None = None,
        val_every_n_steps: int | None = None,
        prefetch: int = 0,
        steps_per_call: int | None = None,
        fast_dev_run: bool | int = False,
        overfit_batches: int | None = None,
        sanity_val_batches: int | None = None,
    ) -> None:
        self.callbacks = check_callbacks(as_callbacks(callbacks))
        self.fast_dev_run = _num_tried(fast_dev_run)
        if self.fast_dev_run:
            self.callbacks = [c for c in self.callbacks if not c.has_side_effects]
            limit_train_batches = limit_val_batches = self.fast_dev_run
        self.overfit_batches = whole_or_none("overfit_batches", overfit_batches)
        self.sanity_val_batches = whole_or_none("sanity_val_batches", sanity_val_batches)
        self.limit_train_batches = whole_or_none("limit_train_batches", limit_train_batches)
        self.limit_val_batches = whole_or_none("limit_val_batches", limit_val_batches)
        self.val_every_n_steps = whole_or_none("val_every_n_steps", val_every_n_steps)
        self.steps_per_call = whole_or_none("steps_per_call", steps_per_call)
        self.prefetch = whole("prefetch", prefetch, 0, "batches")
        self._kept: list[Callback] = []
        if not any(isinstance(callback, History) for callback in self.callbacks):
            self._kept.append(History(max_size=_MAX_SIZE))
        self._memory: dict[str, BuffersByKind] = {}
        self._newest: Run | None = None
        self._training: Run | None = None

    def __repr__(self) -> str:
        names = ", ".join(type(callback).__name__ for callback in self.callbacks)
        return f"Trainer(callbacks=[{names}])"

    @property
    def experiment(self) -> Experiment:
        """The newest Experiment of the newest run, also after an exception or Ctrl-C.

        Raises:
            AttributeError: the Trainer has not run yet.
            RuntimeError: a compiled call failed, and the Experiment is lost.
        """
        if self._newest is None:
            raise AttributeError("this Trainer has no Experiment before its first run: call `fit`")
        return self._newest.experiment

    @property
    def history(self) -> History:
        """`trainer.history`: the metrics of the newest training run, and of evaluations since.

        This is the `solstice.History` among the callbacks. Without one, the Trainer uses its own,
        with the metrics of each epoch and arrays of up to 256 numbers.
        """
        there = [c for c in [*self.callbacks, *self._kept] if isinstance(c, History)]
        return there[0]

    def explain(self) -> None:
        """`trainer.explain()`: print how the newest run is cut into compiled calls, and why.

        Raises:
            AttributeError: the Trainer has not run yet.
        """
        if self._newest is None:
            raise AttributeError("this Trainer has nothing to explain before its first run")
        write_line(self._newest.explain(), sys.stdout)

    def fit(
        self,
        experiment: _E,
        train_ds: Any,
        val_ds: Any = None,
        *,
        num_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        resume: str | PathLike[str] | None = None,
        strict_resume: bool = False,
    ) -> _E:
        """`trained = trainer.fit(exp, train_ds, val_ds, num_epochs=10)`: train.

        Args:
            experiment: the initial Experiment; it is not changed.
            train_ds: the training data set (see the class).
            val_ds: the validation data set, evaluated after each epoch or every
                `val_every_n_steps`.
            num_epochs: passes over `train_ds`, 1 or more. The default is 1, or no limit if
                `max_steps` is given.
            max_steps: the number of training steps to stop after, 1 or more.
            batch_size: examples per batch, for data sets given as arrays. The training set is
                then shuffled for each epoch, like `solstice.data.batches(..., shuffle=True)`.
            resume: continue a saved run as if it had never ended: "last" or "best" of the
                `solstice.callbacks.Checkpoint` among the callbacks, or the path of a checkpoint.
                Keep all other arguments; `num_epochs` and `max_steps` count from the start of the
                saved run. If nothing is saved yet, "last" starts a new run. A line on standard
                error says where the run continues.
            strict_resume: raise an error, instead of a warning, if the resumed run may differ from
                an uninterrupted one.

        Returns:
            The trained Experiment.

        Raises:
            ValueError: `num_epochs` or `max_steps` is not an integer of 1 or more, there is
                nothing to resume, or the Experiment has deleted arrays.
            TypeError: `experiment` is not an Experiment.
            CheckpointError: the checkpoint is damaged or belongs to another Experiment, or
                `strict_resume` refuses it.
            DataError: a data set or a batch cannot be used, or a one-shot iterator is exhausted.
            ExperimentError: a step breaks the contract of its return value.
        """
        _check_experiment(experiment)
        max_steps = whole_or_none("max_steps", max_steps)
        num_epochs = whole_or_none("num_epochs", num_epochs)
        strict_resume = switch("strict_resume", strict_resume)
        if num_epochs is None and max_steps is None:
            num_epochs = 1
        if self.fast_dev_run:
            num_epochs, max_steps, resume = 1, self.fast_dev_run, None
        train = self._training_source(train_ds, batch_size)
        _check_rereadable(train, num_epochs)

        def validate(moment: Record) -> None:
            self._validate(run, cast("Source", val), moment)

        callbacks, val = check_callbacks([*self._kept, *self.callbacks]), None
        validation = Validation(validate, self.val_every_n_steps)
        if val_ds is not None:
            val = open_source(
                val_ds, "val_ds", batch_size, limit=self.limit_val_batches, like=train_ds
            )
            _check_rereadable(val, None if self.val_every_n_steps else num_epochs)
            callbacks = before_monitors(callbacks, validation)
            train.validation = val  # because checkpoints also hold the identity of this data set
        elif self.val_every_n_steps:
            raise ValueError(
                f"val_every_n_steps={self.val_every_n_steps} needs a validation set: "
                f"write `trainer.fit(exp, train_ds, val_ds)`"
            )

        saved = find_saved(resume, callbacks)
        start = Record(
            mode="train",
            num_epochs=num_epochs,
            steps_per_epoch=train.length,
            has_validation=val is not None,
        )
        with self._running(experiment, start, callbacks) as run:
            experiment = experiment.setup(arrays_of(_first(train)))
            stepper = run.stepper(experiment, "train_step", _first(train))
            if val is not None:  # traced now, so that its errors come before any training
                epoch = 0 if saved is None else saved.epoch(start, max_steps)
                evaluator = run.stepper(experiment, "eval_step", _first(val, epoch))
                self._try_validation(evaluator, val, epoch)
            if saved is not None:
                self.history.rows = []  # because the checkpoint restores those of the saved run
                stepper, start = run.resume(saved, stepper, train, start, max_steps, strict_resume)
            run.begin(stepper.experiment if saved else experiment, stepper, train)

            while not has_ended(start, run.stopped, max_steps):
                training = run.begin_pass(stepper, start)
                for _ in training.blocks(self._read(train, start.epoch), max_steps):
                    pass
                validation.closes_epochs = run.stopped is None
                training.end()
                if not training.ended_by_max_steps and run.stopped is None:
                    train.end_epoch(start.epoch)
                start = next_epoch(training.record)
        return cast("_E", run.experiment)

    def validate(
        self, experiment: Experiment, val_ds: Any, *, batch_size: int | None = None
    ) -> dict[str, Any]:
        """`metrics = trainer.validate(exp, val_ds)`: the metrics of `eval_step` over a data set.

        Args:
            experiment: the Experiment to evaluate; it is not changed.
            val_ds: the data set (see the class).
            batch_size: examples per batch, for a data set given as arrays.

        Returns:
            The computed metrics by name: Python numbers for scalars, NumPy arrays otherwise.

        Raises:
            DataError: the data set or a batch cannot be used.
            ExperimentError: `eval_step` breaks the contract of its return value.
        """
        return self._run_evaluation(experiment, val_ds, "val", batch_size)

    def test(
        self, experiment: Experiment, test_ds: Any, *, batch_size: int | None = None
    ) -> dict[str, Any]:
        """`metrics = trainer.test(exp, test_ds)`: like `validate`, in the mode "test"."""
        return self._run_evaluation(experiment, test_ds, "test", batch_size)

    def predict(
        self, experiment: Experiment, ds: Any, *, batch_size: int | None = None
    ) -> Iterator[Outputs]:
        """`for outputs in trainer.predict(exp, ds): ...`: the outputs of `predict_step`, by batch.

        The Trainer keeps none of them. For outputs that are arrays with the examples along axis 0,
        `np.concatenate(list(trainer.predict(exp, ds)))` has all.

        Args:
            experiment: the Experiment to predict with; it is not changed.
            ds: the data set (see the class).
            batch_size: examples per batch, for a data set given as arrays.

        Yields:
            The outputs of one batch, with NumPy arrays in place of JAX arrays.

        Raises:
            DataError: the data set or a batch cannot be used.
            NotImplementedError: the Experiment has no `predict_step`.
        """
        _check_experiment(experiment)
        source = open_source(ds, "ds", batch_size)
        return self._predict(experiment, source)

    def _training_source(self, train_ds: Any, batch_size: int | None) -> Source:
        few = self.overfit_batches
        limit = few or self.limit_train_batches
        source = open_source(train_ds, "train_ds", batch_size, shuffle=few is None, limit=limit)
        source.keep_states(1)  # because the first batch is read before the run starts
        if few is None:
            return source
        # Copies, because a data set may reuse its memory for each batch.
        batches = [copy.deepcopy(batch) for batch in source.epoch(0)]
        return open_source(batches, "train_ds", limit=self.limit_train_batches)

    def _try_validation(self, stepper: Stepper | EagerStepper, val: Source, epoch: int) -> None:
        """Evaluates the batches of `sanity_val_batches`, unseen by callbacks."""
        if self.sanity_val_batches is None or val.is_iterator:  # an iterator cannot be read again
            return
        nobody = CallbackList([])
        slots = StagingBuffers(stepper.steps_per_block)
        trial = Pass(nobody, stepper, slots, Record(mode="val"), _no_snapshot, Guard())
        for _ in trial.blocks(self._read(val, epoch), self.sanity_val_batches):
            pass
        trial.end()

    def _predict(self, experiment: Experiment, source: Source) -> Iterator[Outputs]:
        start = Record(mode="predict", steps_per_epoch=source.length)
        with self._running(experiment, start) as run:
            stepper = run.stepper(experiment, "predict_step", _first(source))
            run.begin(experiment, stepper, source)
            prediction = run.begin_pass(stepper, start)
            for outputs in prediction.blocks(self._read(source, 0)):
                yield from outputs
            prediction.end()

    def _run_evaluation(
        self, experiment: Experiment, ds: Any, mode: Mode, batch_size: int | None
    ) -> dict[str, Any]:
        _check_experiment(experiment)
        limit = self.limit_val_batches if mode == "val" else None
        source = open_source(ds, f"{mode}_ds", batch_size, limit=limit)
        start = Record(mode=mode)
        with self._running(experiment, start) as run:
            experiment = experiment.setup(arrays_of(_first(source)))
            stepper = run.stepper(experiment, "eval_step", _first(source))
            run.begin(experiment, stepper, source)
            return self._evaluate(run, stepper, source, start)

    def _validate(self, run: Run, source: Source, moment: Record) -> None:
        """Evaluates within a training run."""
        with run.interrupted():
            stepper = run.stepper(moment.experiment, "eval_step", _first(source, moment.epoch))
            self._evaluate(run, stepper, source, replace(moment, mode="val", given={}))

    def _evaluate(
        self, run: Run, stepper: Stepper | EagerStepper, source: Source, at: Record
    ) -> dict[str, Any]:
        """The metrics of one evaluation. The Experiment of `eval_step` is dropped."""
        start = replace(at, epoch_step=0, num_examples=0, steps_per_epoch=source.length)
        evaluation = run.begin_pass(stepper, start)
        for _ in evaluation.blocks(self._read(source, at.epoch)):
            pass
        return evaluation.end()

    def _read(self, source: Source, epoch: int) -> Generator[Batch, None, None]:
        batches = source.epoch(epoch)
        return prefetched(batches, self.prefetch) if self.prefetch else batches

    @contextmanager
    def _running(
        self, experiment: Experiment, start: Record, callbacks: list[Callback] | None = None
    ) -> Generator[Run, None, None]:
        """A run as a context: at its end, it notifies the callbacks and keeps the Experiment."""
        hooks = CallbackList(callbacks or check_callbacks([*self._kept, *self.callbacks]))
        run = Run(hooks, experiment, start, self.steps_per_call, self.prefetch, self._memory)
        outer, trains = self._training, start.mode == "train"
        before = self._newest, [(c, c.rows) for c in hooks.callbacks if isinstance(c, History)]
        self._newest = run
        if trains:
            self._training = run
        try:
            if trains:
                with interrupts_guarded(saves=hooks.saves) as guard, run.saved_when_asked(guard):
                    yield run
                    run.end()
            else:
                yield run
                run.end()
        except GeneratorExit:  # the caller of `predict` stopped reading: not an error
            run.end()
            raise
        except BaseException as error:
            run.fail(error)
            # A run that failed before its first pass leaves `experiment` and `history` unchanged.
            if not run.has_begun and before[0] is not None:
                self._newest = before[0]
                for history, rows in before[1]:
                    history.rows = rows
            raise
        finally:
            run.close()
            if trains:
                self._training = outer
            if outer is not None:  # a callback called the Trainer in the middle of `fit`
                self._newest = outer


def _first(source: Source, epoch: int = 0) -> Batch:
    """The first batch of an epoch; the epoch still yields it later."""
    with waiting():
        return source.first(epoch)


def _no_snapshot(training: Pass, has_ended: bool) -> Snapshot:
    raise NotImplementedError("a trial is not saved")


def _check_experiment(experiment: Any) -> None:
    check_experiment(experiment)
    check_processes()
    warn_of_spread_state(experiment)


def _check_rereadable(source: Source, num_epochs: int | None) -> None:
    """Raises a DataError if a generator, which is read only once, must serve several epochs."""
    if source.is_generator and source.limit is None and num_epochs is not None and num_epochs > 1:
        raise DataError(
            f"{source.name} is a generator, a one-shot iterator, and num_epochs={num_epochs} reads "
            f"it {num_epochs} times. Pass the function that makes it instead: "
            f"`{source.name}=my_generator` without the call, or a list"
        )


def _num_tried(fast_dev_run: Any) -> int | None:
    """The number of batches of a `fast_dev_run`; None for a normal run."""
    if isinstance(fast_dev_run, bool | np.bool_):
        return 1 if fast_dev_run else None
    is_off = type(fast_dev_run) is int and fast_dev_run == 0
    return None if is_off else whole("fast_dev_run", fast_dev_run, 1, "batches, True or False")
