"""`train` and `test`: a Trainer with a progress bar, in one line."""

from collections.abc import Iterable
from os import PathLike
from typing import Any, TypeVar

from solstice._callback import Callback
from solstice._engine import MeshLike, Sharding
from solstice._experiment import Experiment
from solstice._keywords import keywords_explained
from solstice._trainer import Trainer

_E = TypeVar("_E", bound=Experiment)


@keywords_explained
def train(
    experiment: _E,
    *,
    train_ds: object,
    val_ds: object = None,
    num_epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    callbacks: Iterable[Callback] | None = None,
    resume: str | PathLike[str] | None = None,
    donate: bool = False,
    mesh: MeshLike | None = None,
    sharding: Sharding = "replicated",
) -> _E:
    """`trained = solstice.train(exp, num_epochs=3, train_ds=train_ds, val_ds=val_ds)`: train.

    Short for `Trainer(callbacks).fit(experiment, ...)`, whose documentation has the details of the
    arguments, the kinds of data sets, and the errors. After an exception or Ctrl-C, the newest
    Experiment is the attribute `experiment` of the exception.

    Args:
        experiment: the initial Experiment; it is not changed, unless `donate` is True.
        train_ds: the training data set.
        val_ds: the validation data set, evaluated after each epoch.
        num_epochs: passes over `train_ds`; 1 unless `max_steps` is given.
        max_steps: the number of training steps to stop after.
        batch_size: examples per batch, for data sets given as arrays.
        callbacks: exactly these callbacks; by default a progress bar.
        resume: continue a saved run: "last" or "best" of a `solstice.callbacks.Checkpoint` among
            the callbacks, or a path.
        donate: give `experiment` up, to save the memory of one state.
        mesh: the devices, as in `Trainer`: "all", a number, or a mesh.
        sharding: how the Experiment lies on them, as in `Trainer`.

    Returns:
        The trained Experiment.
    """
    return Trainer(_or_usual(callbacks), mesh=mesh, sharding=sharding).fit(
        experiment,
        train_ds,
        val_ds,
        num_epochs=num_epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        resume=resume,
        donate=donate,
    )


@keywords_explained
def test(
    experiment: Experiment,
    test_ds: object,
    *,
    batch_size: int | None = None,
    confidence: float | None = None,
    replicates: int = 1000,
    callbacks: Iterable[Callback] | None = None,
    mesh: MeshLike | None = None,
    sharding: Sharding = "replicated",
) -> dict[str, Any]:
    """`metrics = solstice.test(exp, test_ds)`: the metrics of `eval_step` over a data set.

    Short for `Trainer(callbacks).test(experiment, test_ds)`.

    Args:
        experiment: the Experiment to evaluate; it is not changed.
        test_ds: the data set.
        batch_size: examples per batch, for a data set given as arrays.
        confidence: 0.95 adds error bars: "accuracy_low", "accuracy_high", "accuracy_se"; see
            `Trainer.validate`.
        replicates: number of replicates of the data set for them, 20 or more.
        callbacks: exactly these callbacks; by default a progress bar.
        mesh: the devices, as in `Trainer`: "all", a number, or a mesh.
        sharding: how the Experiment lies on them, as in `Trainer`.

    Returns:
        The computed metrics by name: Python numbers for scalars, NumPy arrays otherwise.
    """
    trainer = Trainer(_or_usual(callbacks), mesh=mesh, sharding=sharding)
    return trainer.test(
        experiment,
        test_ds,
        batch_size=batch_size,
        confidence=confidence,
        replicates=replicates,
    )


test.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  (so that pytest does not collect it)


def _or_usual(callbacks: Iterable[Callback] | None) -> Iterable[Callback]:
    if callbacks is not None:
        return callbacks
    from solstice.callbacks import ProgressBar

    return [ProgressBar()]
