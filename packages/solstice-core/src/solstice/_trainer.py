"""The Trainer: the loop over epochs, batches and callbacks."""

import copy
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, TypeVar, cast

from solstice._arguments import switch, whole_or_none
from solstice._batch import arrays_of
from solstice._callback import Callback
from solstice._console import Text
from solstice._engine import (
    BuffersByKind,
    check_processes,
    interrupts_guarded,
    warn_of_spread_state,
)
from solstice._errors import DataError
from solstice._experiment import Experiment, check_experiment
from solstice._loop import (
    Ended,
    Hooks,
    Limits,
    Run,
    Stages,
    Training,
    Validation,
    as_callbacks,
    check_callbacks,
    ended,
    evaluate,
    find_saved,
    first_batch,
    predict,
    reported,
    train,
)
from solstice._options import Options
from solstice._record import Record
from solstice._sources import Source, open_source
from solstice._types import Mode, Outputs
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
        self._options = Options.of(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            val_every_n_steps=val_every_n_steps,
            prefetch=prefetch,
            steps_per_call=steps_per_call,
            fast_dev_run=fast_dev_run,
            overfit_batches=overfit_batches,
            sanity_val_batches=sanity_val_batches,
        )
        self.callbacks = check_callbacks(as_callbacks(callbacks))
        if self._options.fast_dev_run:
            self.callbacks = [c for c in self.callbacks if not c.has_side_effects]
        self._kept: list[Callback] = []
        if not any(isinstance(callback, History) for callback in self.callbacks):
            self._kept.append(History(max_size=_MAX_SIZE))
        self._memory: dict[str, BuffersByKind] = {}
        self._newest: Run | Ended | None = None
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

    def explain(self) -> str:
        """`print(trainer.explain())`: how the newest run is cut into compiled calls, and why.

        Returns:
            The text, which a REPL and a notebook show without `print`.

        Raises:
            AttributeError: the Trainer has not run yet.
        """
        if self._newest is None:
            raise AttributeError("this Trainer has nothing to explain before its first run")
        return Text(self._newest.explain())

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
        options, limits = self._options, self._limits(num_epochs, max_steps)
        source = self._training_source(train_ds, batch_size)
        _check_rereadable(source, limits.num_epochs)
        callbacks = check_callbacks([*self._kept, *self.callbacks])
        saved = None if options.fast_dev_run else find_saved(resume, callbacks)
        training = Training(
            source,
            self._validation(val_ds, batch_size, train_ds, limits.num_epochs),
            limits,
            options.sanity_val_batches,
            saved,
            switch("strict_resume", strict_resume),
        )
        hooks = Hooks(callbacks, "train", saved and saved.stop)
        stages = self._stages()
        with interrupts_guarded(saves=hooks.saves) as guard:
            with self._preparing(hooks, training.start, experiment):
                run = training.run(experiment, hooks, stages, guard)
            with self._running(run):
                run.start()
                if saved is not None:
                    saved.restore_callbacks(hooks)
                train(run)
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

    def _limits(self, num_epochs: int | None, max_steps: int | None) -> Limits:
        max_steps = whole_or_none("max_steps", max_steps)
        num_epochs = whole_or_none("num_epochs", num_epochs)
        if self._options.fast_dev_run:
            return Limits(1, self._options.fast_dev_run)
        return Limits(1 if num_epochs is None and max_steps is None else num_epochs, max_steps)

    def _training_source(self, train_ds: Any, batch_size: int | None) -> Source:
        few = self._options.overfit_batches
        limit = few or self._options.limit_train_batches
        source = open_source(train_ds, "train_ds", batch_size, shuffle=few is None, limit=limit)
        source.keep_states(1)  # because the first batch is read before the run starts
        if few is None:
            return source
        # Copies, because a data set may reuse its memory for each batch.
        batches = [copy.deepcopy(batch) for batch in source.epoch(0)]
        return open_source(batches, "train_ds", limit=self._options.limit_train_batches)

    def _validation(
        self, val_ds: Any, batch_size: int | None, train_ds: Any, num_epochs: int | None
    ) -> Validation | None:
        every, limit = self._options.val_every_n_steps, self._options.limit_val_batches
        if val_ds is not None:
            val = open_source(val_ds, "val_ds", batch_size, limit=limit, like=train_ds)
            _check_rereadable(val, None if every else num_epochs)
            return Validation(val, every)
        if every:
            raise ValueError(
                f"val_every_n_steps={every} needs a validation set: "
                f"write `trainer.fit(exp, train_ds, val_ds)`"
            )
        return None

    def _stages(self) -> Stages:
        return Stages(self._options.steps_per_call, self._options.prefetch, self._memory)

    def _run_evaluation(
        self, experiment: Experiment, ds: Any, mode: Mode, batch_size: int | None
    ) -> dict[str, Any]:
        _check_experiment(experiment)
        limit = self._options.limit_val_batches if mode == "val" else None
        source = open_source(ds, f"{mode}_ds", batch_size, limit=limit)
        with self._evaluating(experiment, source, "eval_step", mode) as run:
            return evaluate(run)

    def _predict(self, experiment: Experiment, source: Source) -> Iterator[Outputs]:
        with self._evaluating(experiment, source, "predict_step", "predict") as run:
            yield from predict(run)

    @contextmanager
    def _evaluating(
        self, experiment: Experiment, source: Source, method: str, mode: Mode
    ) -> Generator[Run, None, None]:
        """A run that does not train, after `on_fit_start`."""
        hooks = Hooks(check_callbacks([*self._kept, *self.callbacks]), mode)
        stages, start = self._stages(), Record(mode=mode, steps_per_epoch=source.length)
        with self._preparing(hooks, start, experiment):
            if mode != "predict":
                experiment = experiment.setup(arrays_of(first_batch(source)))
            stage = stages.stage(source, experiment, method, hooks)
            run = Run(stage, hooks, start, stages, experiment=experiment)
        with self._running(run):
            run.start()
            yield run

    @contextmanager
    def _preparing(
        self, hooks: Hooks, at: Record, experiment: Experiment
    ) -> Generator[None, None, None]:
        """Within, a run is prepared. If that fails, an earlier run stays the newest."""
        try:
            with reported(hooks, at, experiment):
                yield
        except BaseException:
            self._newest = self._newest or Ended(experiment, "the run ended before its first step")
            raise

    @contextmanager
    def _running(self, run: Run) -> Generator[None, None, None]:
        """Within, a run is the newest of this Trainer."""
        outer, before = self._training, self._newest
        histories = [c for c in run.hooks.callbacks if isinstance(c, History)]
        rows = [history.rows for history in histories]
        self._newest, self._training = run, run if run.state.trains else outer
        try:
            with ended(run):
                yield
        except BaseException:
            # A run that failed before its first epoch leaves `experiment` and `history` unchanged.
            if not run.has_begun and before is not None:
                self._newest = before
                for history, there in zip(histories, rows, strict=True):
                    history.rows = there
            raise
        finally:
            if self._newest is run:
                self._newest = Ended.of(run)
            if outer is not None:  # a callback called the Trainer in the middle of `fit`
                self._newest = outer
            self._training = outer
            run.stages.close()


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
