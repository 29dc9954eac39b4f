"""The methods `train`, `test` and `predict` of ready-made Experiments."""

from collections.abc import Iterable
from os import PathLike
from typing import Any, Self

import numpy as np

from solstice import _tree
from solstice._callback import Callback
from solstice._engine import MeshLike, Sharding
from solstice._experiment import Experiment
from solstice._keywords import keywords_explained
from solstice._train import test, train
from solstice._trainer import Trainer
from solstice._types import Dataset, Outputs


class ReadyMadeExperiment(Experiment):
    """`class Mine(ReadyMadeExperiment)`: an Experiment with `train`, `test` and `predict`.

    A base for kinds that a `Task` cannot describe, such as `GANExperiment` with its two updates.
    """

    @keywords_explained
    def train(
        self,
        train_ds: Dataset,
        val_ds: Dataset = None,
        *,
        num_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        callbacks: Iterable[Callback] | None = None,
        resume: str | PathLike[str] | None = None,
        donate: bool = False,
        mesh: MeshLike | None = None,
        sharding: Sharding = "replicated",
    ) -> Self:
        """`exp = exp.train(train_ds, val_ds, num_epochs=5)`: a trained copy.

        The arguments are those of `solstice.train`. An Experiment never changes in place, so
        assign the result. `exp = exp.train(..., donate=True)` gives the old one up, to save memory.
        """
        return train(
            self,
            train_ds=train_ds,
            val_ds=val_ds,
            num_epochs=num_epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            callbacks=callbacks,
            resume=resume,
            donate=donate,
            mesh=mesh,
            sharding=sharding,
        )

    @keywords_explained
    def test(
        self,
        test_ds: Dataset,
        *,
        batch_size: int | None = None,
        confidence: float | None = None,
        replicates: int = 1000,
        callbacks: Iterable[Callback] | None = None,
        mesh: MeshLike | None = None,
        sharding: Sharding = "replicated",
    ) -> dict[str, Any]:
        """`exp.test(test_ds)["loss"]`: metrics by name, with the arguments of `solstice.test`."""
        given: dict[str, Any] = {"callbacks": callbacks, "mesh": mesh, "sharding": sharding}
        given |= {"confidence": confidence, "replicates": replicates}
        return test(self, test_ds, batch_size=batch_size, **given)

    @keywords_explained
    def predict(
        self,
        ds: Dataset,
        *,
        batch_size: int | None = None,
        mesh: MeshLike | None = None,
        sharding: Sharding = "replicated",
    ) -> Outputs:
        """`predictions = exp.predict(x, batch_size=256)`: run `predict_step` over a data set.

        Args:
            ds: features, or a data set of batches; targets in the batches are ignored. For a model
                with two inputs, give `(a, b)` or `((a, b), y)`. Masked examples are predicted too,
                so row i is example i.
            batch_size: examples per batch, for a data set given as arrays.
            mesh: the devices, as in `Trainer`: "all", a number, or a mesh.
            sharding: how the Experiment lies on them, as in `Trainer`.

        Returns:
            NumPy arrays with one row per example. If they do not fit in memory, use
            `Trainer.predict`, which yields one batch at a time.

        Raises:
            DataError: the model has not been initialised, or the features have other shapes.
        """
        outputs = Trainer(mesh=mesh, sharding=sharding).predict(self, ds, batch_size=batch_size)
        return _tree.map(lambda *parts: np.concatenate(parts), *outputs)
