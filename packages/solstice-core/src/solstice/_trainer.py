"""The Trainer: keeps the options and the callbacks, and the newest run."""

from collections.abc import Iterable, Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar, cast

from solstice._callback import Callback
from solstice._console import Text
from solstice._engine import MeshLike, Sharding
from solstice._experiment import Experiment
from solstice._hyperparameters import plain_hyperparameters
from solstice._keywords import keywords_explained
from solstice._loop import (
    Ended,
    Evaluation,
    as_callbacks,
    branch_of,
    check_callbacks,
    say_stopped,
    train,
)
from solstice._options import Options, error_bars
from solstice._own_history import histories_in, own_history
from solstice._runs import Runs
from solstice._session import Session
from solstice._types import Dataset, Outputs

if TYPE_CHECKING:
    from solstice.history import History

_E = TypeVar("_E", bound=Experiment)


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
        limit_val_batches: the most batches per validation; `test` and `predict` use all.
        val_every_n_steps: validate at every n-th training step of the run, instead of after each
            epoch.
        prefetch: the number of batches that a thread reads ahead, for slow data sets. 0 uses no
            thread: for small steps, a thread costs more than it saves.
        steps_per_call: the most steps in one compiled call. By default chosen from the step's
            cost and the size of a batch (1 to 512); `trainer.explain()` shows the choice. It is 1
            in any case if a step changes so much memory that a loop would be slower.
        fast_dev_run: run everything once, quickly: one epoch of one batch (True) or of n batches
            (a number n), and validations of the same length. Callbacks with side effects, such as
            loggers and checkpoints, are left out, and `resume` is ignored.
        overfit_batches: train on the first n batches only, always in the same order. A model that
            cannot overfit them has a bug.
        sanity_val_batches: evaluate n batches before the first step of `fit`, to find errors in the
            validation early. Callbacks do not see these batches, and the metrics are dropped.
        val_confidence: 0.95 adds error bars to all validations; see `validate`.
        mesh: the devices: "all", a number, or a `jax.sharding.Mesh` with Auto axes. Each batch is
            split over them, along the axis "data" of the mesh or else its first. The history is
            that of one device. None runs on the device of the Experiment.
        sharding: how the arrays of the Experiment lie on a mesh: "replicated", each whole on every
            device; "fsdp", split over all of them, for less memory; "members", the members of a
            `Population` spread over them; a dict from path patterns to the first two words or a
            `jax.sharding.PartitionSpec`, such as `{"*kernel": P(None, "model"), "*": "fsdp"}`, of
            which the first match counts; or a function of a path, such as "params/dense/kernel",
            and a `jax.ShapeDtypeStruct`.
        hyperparameters: settings of the run to show and to save: a dict, a dataclass or an
            `argparse.Namespace`, with numbers, text, lists and dicts. Loggers, checkpoints, the
            history and `run.json` have them. They change nothing in the run. None for those of the
            checkpoint that is resumed.

    Attributes:
        callbacks: the callbacks, in the order of their calls.

    Raises:
        ValueError: a number is out of range, or not an integer; `sharding` is an unknown word, or
            has no mesh.
        TypeError: `callbacks` is not a list of callbacks, or `mesh`, `sharding` or
            `hyperparameters` is something else.

    The order at one step: the step, callbacks that log, validation, callbacks that monitor,
    callbacks that save.
    """

    @keywords_explained
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
        val_confidence: float | None = None,
        mesh: MeshLike | None = None,
        sharding: Sharding = "replicated",
        hyperparameters: object = None,
    ) -> None:
        self._given = plain_hyperparameters(hyperparameters)
        self._options = Options.of(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            val_every_n_steps=val_every_n_steps,
            prefetch=prefetch,
            steps_per_call=steps_per_call,
            fast_dev_run=fast_dev_run,
            overfit_batches=overfit_batches,
            sanity_val_batches=sanity_val_batches,
            val_confidence=val_confidence,
            mesh=mesh,
            sharding=sharding,
        )
        self.callbacks = check_callbacks(as_callbacks(callbacks))
        if self._options.fast_dev_run:
            self.callbacks = [c for c in self.callbacks if not c.has_side_effects]
        self._kept: list[Callback] = []
        if not histories_in(self.callbacks):
            self._kept.append(own_history())
        self._runs = Runs()

    def __repr__(self) -> str:
        names = ", ".join(type(callback).__name__ for callback in self.callbacks)
        return f"Trainer(callbacks=[{names}])"

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """`trainer.hyperparameters["rate"]`: those given to the Trainer; {} without any."""
        return dict(self._given or {})

    @property
    def experiment(self) -> Experiment:
        """The newest Experiment of the newest run, also after an exception or Ctrl-C.

        Raises:
            AttributeError: the Trainer has not run yet.
            RuntimeError: a compiled call failed, and the Experiment is lost.
        """
        if self._runs.newest is None:
            raise AttributeError("this Trainer has no Experiment before its first run: call `fit`")
        return self._runs.newest.experiment

    @property
    def history(self) -> "History":
        """`trainer.history`: the metrics of the newest training run, and of evaluations since.

        This is the `solstice.History` among the callbacks. Without one, the Trainer uses its own,
        with the metrics of each epoch and arrays of up to 256 numbers.
        """
        return histories_in([*self.callbacks, *self._kept])[0]

    @property
    def stopped(self) -> str | None:
        """`trainer.stopped`: why a callback ended the newest run; None if it ended by itself.

        It is the text of the `solstice.Stop` that the callback raised.
        """
        newest = self._runs.newest
        return newest.stopped if isinstance(newest, Ended) else None

    def explain(self) -> str:
        """`print(trainer.explain())`: how the newest run is cut into compiled calls, and why.

        A REPL and a notebook show the text without `print`.

        Raises:
            AttributeError: the Trainer has not run yet.
        """
        if self._runs.newest is None:
            raise AttributeError("this Trainer has nothing to explain before its first run")
        return Text(self._runs.newest.explain())

    @keywords_explained
    def fit(
        self,
        experiment: _E,
        train_ds: Dataset,
        val_ds: Dataset = None,
        *,
        num_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        resume: str | PathLike[str] | None = None,
        at_step: int | None = None,
        branch: str | PathLike[str] | None = None,
        strict_resume: bool = False,
        donate: bool = False,
    ) -> _E:
        """`trained = trainer.fit(exp, train_ds, val_ds, num_epochs=10)`: train.

        Args:
            experiment: the initial Experiment; it is not changed, unless `donate` is True.
            train_ds: the training data set (see the class).
            val_ds: the validation data, evaluated after each epoch or every `val_every_n_steps`.
            num_epochs: passes over `train_ds`, 1 or more. The default is 1, or no limit if
                `max_steps` is given.
            max_steps: the number of training steps to stop after, 1 or more.
            batch_size: examples per batch, for data sets given as arrays. The training set is
                then shuffled for each epoch, like `data.batches(..., shuffle=True)`. Small arrays
                are copied to the device once, as by its `on_device=None`.
            resume: continue a saved run as if it had never ended: "last" or "best" of the
                `solstice.callbacks.Checkpoint` among the callbacks, the path of a checkpoint, or a
                run folder such as "runs/a", for its newest checkpoint.
                Keep all other arguments; `num_epochs` and `max_steps` count from the start of the
                saved run. If nothing is saved yet, "last" starts a new run. The logger "solstice"
                names the checkpoint.
            at_step: start a branch after this step of the run `resume`, which may lie between two
                checkpoints: the run is then replayed to it, which needs the same data and step.
            branch: the folder of a new run that starts within the run folder `resume`, at `at_step`
                or at its newest checkpoint. It may change what a resumed run must keep, and
                `run.json` lists the changes. Scalars of the Experiment, such as an injected
                learning rate, take the values given, unless the run has changed them. Its history
                begins with the rows of the other run. `Checkpoint` saves into this folder; the same
                line then continues the branch.
            strict_resume: raise an error, instead of a warning, if the resumed run may differ from
                an uninterrupted one.
            donate: give `experiment` up, so that the run needs one state less in memory. Its arrays
                are deleted at the first steps, except those that other objects hold too: use the
                result, `exp = trainer.fit(exp, ..., donate=True)`.

        Returns:
            The trained Experiment.

        Raises:
            ValueError: `num_epochs` or `max_steps` is below 1 or a float, there is nothing to
                resume, the Experiment has deleted arrays, or a callback would write into the run
                that a branch leaves.
            TypeError: `experiment` is not an Experiment.
            CheckpointError: the checkpoint is damaged or belongs to another Experiment,
                `strict_resume` refuses it, or the run cannot be replayed to `at_step`.
            DataError: a data set or a batch cannot be used, or a one-shot iterator is exhausted.
            ExperimentError: a step breaks the contract of its return value.
            ShardingError: the mesh or the sharding does not fit the devices or the Experiment.
            RuntimeError: this Trainer is training already.
        """
        self._options.check(experiment)
        with self._session().training(
            experiment,
            train_ds,
            val_ds,
            num_epochs=num_epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            resume=resume,
            strict_resume=strict_resume,
            donate=donate,
            branch=branch_of(resume, at_step, branch),
        ) as run:
            train(run)
        say_stopped(run)
        return cast("_E", run.experiment)

    @keywords_explained
    def validate(
        self,
        experiment: Experiment,
        val_ds: Dataset,
        *,
        batch_size: int | None = None,
        confidence: float | None = None,
        replicates: int = 1000,
    ) -> dict[str, Any]:
        """`metrics = trainer.validate(exp, val_ds)`: the metrics of `eval_step` over a data set.

        Args:
            experiment: the Experiment to evaluate; it is not changed.
            val_ds: the data set (see the class).
            batch_size: examples per batch, for a data set given as arrays.
            confidence: 0.95 adds to each metric that is a float a 95 % interval, "<name>_low" and
                "<name>_high", and its standard error, "<name>_se"; see `solstice.Resampled`. The
                default is `val_confidence`.
            replicates: number of replicates of the data set for them, 20 or more.

        Returns:
            The computed metrics by name: Python numbers for scalars, NumPy arrays otherwise.

        Raises:
            DataError: the data set or a batch cannot be used.
            ExperimentError: `eval_step` breaks the contract of its return value.
        """
        self._options.check(experiment)
        confidence = self._options.val_confidence if confidence is None else confidence
        evaluation = Evaluation("val", error_bars(confidence, replicates))
        return self._session().measure(experiment, val_ds, batch_size, evaluation)

    @keywords_explained
    def test(
        self,
        experiment: Experiment,
        test_ds: Dataset,
        *,
        batch_size: int | None = None,
        confidence: float | None = None,
        replicates: int = 1000,
    ) -> dict[str, Any]:
        """`metrics = trainer.test(exp, test_ds, confidence=0.95)`: as `validate`, in mode "test".

        By default there are no error bars.
        """
        self._options.check(experiment)
        evaluation = Evaluation("test", error_bars(confidence, replicates))
        return self._session().measure(experiment, test_ds, batch_size, evaluation)

    @keywords_explained
    def predict(
        self, experiment: Experiment, ds: Dataset, *, batch_size: int | None = None
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
        self._options.check(experiment)
        return self._session().predict(experiment, ds, batch_size)

    def _session(self) -> Session:
        callbacks = [*self._kept, *self.callbacks]
        return Session(self._options, self._runs, callbacks, self._given)
