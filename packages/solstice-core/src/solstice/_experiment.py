"""Experiment: the base class, one immutable pytree with the whole state of a run."""

import difflib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields
from typing import TYPE_CHECKING, Any, Self

import equinox as eqx

from solstice import _tree
from solstice._arguments import check_alive, is_deleted
from solstice._console import warn
from solstice._types import Batch, Outputs


class Experiment(eqx.Module):
    """The whole state of a run as one immutable pytree: subclass it.

    ```python
    class Classifier(solstice.Experiment):
        params: Any
        opt_state: Any

        def train_step(self, batch):
            ...  # gradients, update
            return solstice.replace(self, params=params, opt_state=opt_state), metrics

        def eval_step(self, batch):
            return self, metrics

    trained = solstice.train(exp, num_epochs=3, train_ds=train_ds, val_ds=val_ds)
    ```

    It is an `equinox.Module`: annotate fields as in a dataclass, or write an `__init__`. A step
    may be decorated with `jax.jit` or `equinox.filter_jit`; the Trainer compiles it either way.
    `outputs`, the second result of a step, is a `Metrics`, merged over the epoch, or a pytree,
    such as a mapping. Scalars in it are averaged over examples (each batch is weighted by the
    length of axis 0 of its first array) and named by their paths, such as "aux/l2". A single
    scalar is "loss". `Metrics` in it are merged too. Other leaves give no metrics; a warning names
    them once per run. Callbacks receive all of `outputs`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _check_is_finished(cls)
        for name in vars(cls):
            instead = _meant(name) if callable(vars(cls)[name]) else None
            if instead is not None:
                warn(
                    f"{cls.__name__}.{name} is never called by the Trainer: {instead}. A method "
                    f"that your own code calls needs another name, such as `_{name}`",
                    stacklevel=5,  # through the metaclasses, to the line of the class
                )

    if not TYPE_CHECKING:  # to a type checker, fields are frozen

        def __setattr__(self, name: str, value: object) -> None:
            try:
                super().__setattr__(name, value)
            except FrozenInstanceError as error:
                raise FrozenInstanceError(f"{error}. {_cure(self, name)}") from None

    @abstractmethod
    def train_step(self, batch: Batch) -> tuple[Self, Outputs]:
        """`exp, outputs = exp.train_step(batch)`: one update on one batch.

        The returned Experiment must have the same tree structure, shapes and dtypes.
        """

    @abstractmethod
    def eval_step(self, batch: Batch) -> tuple[Self, Outputs]:
        """`exp, outputs = exp.eval_step(batch)`: evaluate one batch.

        Evaluation cannot change training: the returned Experiment goes to the next `eval_step` of
        the same evaluation, and is dropped at its end.
        """

    def predict_step(self, batch: Batch) -> Outputs:
        """`outputs = exp.predict_step(batch)`: the outputs of `Trainer.predict`. Optional."""
        raise NotImplementedError(
            f"{type(self).__name__} has no predict_step: to predict, write "
            f"`def predict_step(self, batch): return outputs` in it"
        )

    def setup(self, batch: Batch) -> Self:
        """`exp = exp.setup(first_batch)`: finish the Experiment with a first batch. Optional.

        The Trainer calls it once before it trains or evaluates, outside of any compilation, with
        the first batch as NumPy arrays. Create parameters here if their shape depends on the data.
        It must return an Experiment that is already set up unchanged.
        """
        del batch
        return self

    def epoch_step(self, metrics: Mapping[str, Any]) -> Self:
        """`exp = exp.epoch_step(metrics)`: the Experiment for the next epoch. Optional.

        ```python
        def epoch_step(self, metrics):
            if metrics["val/loss"] < self.best:
                return solstice.replace(self, best=metrics["val/loss"])
            return solstice.replace(self, rate=self.rate / 2)
        ```

        `fit` calls it on the host after each complete training epoch and its validation, before the
        callbacks that monitor and save, so a checkpoint has its result. An epoch that `max_steps`
        or a request to stop cuts short has none. If the Experiment has an attribute `monitor`, such
        as "val/loss", a run that cannot have this metric is refused before the first step; if that
        is None, `fit` does not call `epoch_step`.

        Args:
            metrics: the metrics of the epoch by name, such as "train/loss", and those of its
                newest validation, such as "val/loss". Values that callbacks `measure` are not
                among them. With several processes all get the same numbers, and must return the
                same Experiment; so randomness comes from a key in a field.

        Returns:
            An Experiment of the same class. If its structure, shapes or dtypes are others, the next
            epoch compiles its step again.
        """
        del metrics
        return self

    @property
    def is_finished(self) -> bool:
        """`exp.is_finished`: whether to end the run, read after each `epoch_step`. Optional."""
        return False

    def check_batch(self, batch: Batch) -> None:
        """`exp.check_batch(batch)`: raise a `DataError` for an invalid batch. Optional.

        The Trainer calls it on the host for every batch, as NumPy arrays, before the step. Check
        values here, because compiled code cannot raise an error. It should be cheap.
        """
        del batch

    def stacked_check(self) -> Callable[[Batch], None] | None:
        """`check = exp.stacked_check()`: a function that checks many batches at once. Optional.

        ```python
        def stacked_check(self):
            def check(batches):
                if np.isnan(batches["x"]).any():
                    raise DataError("x contains NaN")

            return check
        ```

        The Trainer calls `check(batches)` with several batches of the same shapes, stacked: NumPy
        arrays with one more axis in front, in the dtypes of the step (integers keep their own),
        and None in place of text. They are read-only, and valid during the call. It must judge each
        example by itself, because data on the device are checked once, as one batch of all
        examples. If it raises, each batch is checked by itself, stacked with an axis of one: the
        batches before the first bad one are trained, and its error is raised. `check_batch` is then
        called only with the first batch of each structure, shape and dtype.

        Without it, or if it returns None, `check_batch` is called for each batch. A class that
        overrides `check_batch` alone does not use the `stacked_check` of its bases.

        It is called once per run. The arrays to which `check` refers stay in memory for the run, so
        it should refer to what it needs, and not to `self`.
        """
        return None


def check_experiment(experiment: Any) -> None:
    """Raises an error if it is not an Experiment, or has deleted arrays."""
    kind = experiment.__name__ if isinstance(experiment, type) else type(experiment).__name__
    if isinstance(experiment, type):
        raise TypeError(
            f"experiment must be an Experiment; it is the class {kind}: write `{kind}(...)`"
        )
    if not isinstance(experiment, Experiment):
        advice = (
            f"Write `class {kind}(solstice.Experiment)`"
            if hasattr(experiment, "train_step")
            else "It is the first argument: `solstice.ClassificationExperiment(model, optimizer)`, "
            "another ready-made one, or a class of your own"
        )
        raise TypeError(f"experiment must be a solstice.Experiment; it is a {kind}. {advice}")
    if any(is_deleted(leaf) for leaf in _tree.leaves(experiment)):
        # Paths are slow to make, so only for the message.
        for path, leaf in _tree.leaves_by_path(experiment):
            check_alive(f"`{path}` of the {kind} that is the experiment", leaf)


_STEPS = (
    "train_step",
    "eval_step",
    "predict_step",
    "setup",
    "epoch_step",
    "check_batch",
    "stacked_check",
)
_AT_EPOCH_END = (
    "to change the Experiment after an epoch and its validation, write "
    "`def epoch_step(self, metrics): return self`"
)
_ELSEWHERE = {
    **dict.fromkeys(
        ("end_epoch", "epoch_end", "training_epoch_end", "validation_epoch_end"), _AT_EPOCH_END
    ),
    "training_step": "write `train_step`",
    "test_step": "`trainer.test` measures by `eval_step`",
    "validation_step": "validation measures by `eval_step`",
    "val_step": "validation measures by `eval_step`",
    "evaluation_step": "write `eval_step`",
    "prediction_step": "write `predict_step`",
    "configure_optimizers": "hold the optimiser in a field, and update in `train_step`",
}
"""Methods of other libraries, and the advice for each."""


def _cure(experiment: Experiment, name: str) -> str:
    """What to write in place of the assignment of an attribute."""
    if name in {field.name for field in fields(experiment)}:
        return (
            f"An Experiment never changes in place: write `self = solstice.replace(self, "
            f"{name}=...)`, and return `self`"
        )
    return f"Declare the field in the class {type(experiment).__name__}: write `{name}: Any`"


def _meant(name: str) -> str | None:
    """The advice for a method that looks like a step or a hook; None for any other name."""
    if name in _STEPS or name.startswith("_"):
        return None
    if name.startswith("on_"):
        hooks = "hooks are methods of a `solstice.Callback`, in the list given to the Trainer"
        is_epoch_end = "epoch" in name and "end" in name
        return f"{hooks}; {_AT_EPOCH_END}" if is_epoch_end else hooks
    close = difflib.get_close_matches(name, _STEPS, 1, 0.85)
    return _ELSEWHERE.get(name) or (f"did you mean `{close[0]}`?" if close else None)


def _check_is_finished(kind: type[Experiment]) -> None:
    """Refuses an `is_finished` that would always be true, or could not be set.

    Raises:
        TypeError: it is a method without `@property`, or a field.
    """
    name, own = f"{kind.__name__}.is_finished", vars(kind).get("is_finished")
    if callable(own):
        raise TypeError(f"{name} is a method, which is always true: write `@property` above it")
    if "is_finished" in kind.__annotations__ and own is None:
        raise TypeError(
            f"{name} is a field, and must be a property: call the field `finished`, and write "
            f"`@property` and `def is_finished(self): return self.finished`"
        )


def overrides(kind: type[Experiment], method: str) -> bool:
    """Whether a class of Experiments overrides `method`."""
    return getattr(kind, method) is not getattr(Experiment, method)


def steps_epochs(experiment: Experiment) -> bool:
    """Whether an Experiment does something after each epoch."""
    kind = type(experiment)
    has_step = overrides(kind, "epoch_step") or overrides(kind, "is_finished")
    return has_step and getattr(experiment, "monitor", "") is not None


def stacked_check_of(experiment: Experiment) -> Callable[[Batch], None] | None:
    """The `stacked_check` of an Experiment, unless its class overrides `check_batch` below it."""
    names = {"check_batch", "stacked_check"}
    kind = type(experiment)
    newest = next(base for base in kind.__mro__ if names & vars(base).keys())
    # The function of the class, because a bound method of an Experiment takes 40 us to make.
    return kind.stacked_check(experiment) if "stacked_check" in vars(newest) else None


def unwrapped(experiment: Experiment) -> Experiment:
    """The Experiment inside one that evaluates it, such as `Resampled`; else the same."""
    return getattr(experiment, "wrapped", experiment)


def params_of(experiment: Any) -> Any:
    """`exp.params` or `exp.learner.params`; the whole Experiment if there is neither."""
    for owner in (experiment, getattr(experiment, "learner", None)):
        params = getattr(owner, "params", None)
        if params is not None:
            return params
    return experiment
