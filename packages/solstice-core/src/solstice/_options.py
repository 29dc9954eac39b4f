"""Options: the options of a Trainer, checked, and what follows from them for a run."""

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from solstice._arguments import number, whole, whole_or_none
from solstice._engine import Layout, check_processes, warn_of_spread_state
from solstice._errors import DataError
from solstice._experiment import Experiment, check_experiment
from solstice._loop import Limits, StageOptions, Validation
from solstice._sources import Source, open_source
from solstice._types import Batch, Dataset, Mode
from solstice.data import per_process


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a Trainer; see `solstice.Trainer`.

    Attributes:
        fast_dev_run: the number of batches of a quick run, or None for a normal run.
        layout: the mesh and the sharding; None for one device.
    """

    limit_train_batches: int | None
    limit_val_batches: int | None
    val_every_n_steps: int | None
    prefetch: int
    steps_per_call: int | None
    fast_dev_run: int | None
    overfit_batches: int | None
    sanity_val_batches: int | None
    val_confidence: float | None
    layout: Layout | None

    @staticmethod
    def of(
        *,
        prefetch: int,
        fast_dev_run: object,
        mesh: object,
        sharding: object,
        val_confidence: float | None,
        **numbers: int | None,
    ) -> "Options":
        """`Options.of(prefetch=0, ...)`: the options as the user has written them.

        Raises:
            ValueError: a number is out of range, or not an integer; or an unknown word.
            TypeError: `mesh` or `sharding` is something else.
        """
        layout = Layout.of(mesh, sharding)
        tried = _num_tried(fast_dev_run)
        checked = {name: whole_or_none(name, value) for name, value in numbers.items()}
        prefetch = whole("prefetch", prefetch, 0, "batches")
        options = Options(
            prefetch=prefetch,
            fast_dev_run=tried,
            val_confidence=_confidence(val_confidence),
            layout=layout,
            **checked,
        )
        if tried is None:
            return options
        return replace(options, limit_train_batches=tried, limit_val_batches=tried)

    def words(self, run: str, limits: Limits | None = None) -> str:
        """A run with these options in words, which are the same in all its processes."""
        layout = self.layout
        given = {**vars(self), **({} if limits is None else vars(limits))}
        if layout is not None:
            given |= {"layout": None, "mesh": layout.mesh, "sharding": layout.rule.patterns}
        some = (f"{name}={value}" for name, value in given.items() if value)
        return f"{run}, {', '.join(some)},"

    def of_batches(self, batch_size: int | None) -> dict[str, Any]:
        """The options that change the batches or the schedule of a run, as values of JSON."""
        names = "limit_train_batches limit_val_batches val_every_n_steps overfit_batches"
        given = {name: getattr(self, name) for name in [*names.split(), "steps_per_call"]}
        return {**given, "batch_size": batch_size}

    def of_stages(self, given: Experiment | None) -> StageOptions:
        """The options of the stages of a run; `given` is the Experiment that it gives up."""
        bars = error_bars(self.val_confidence)
        return StageOptions(self.steps_per_call, self.prefetch, given, self.layout, bars)

    def check(self, experiment: Experiment) -> None:
        """Raises an error if a run cannot have this Experiment, or these processes."""
        check_experiment(experiment)
        if self.layout is None:
            check_processes()
            warn_of_spread_state(experiment)

    def source(self, ds: Dataset, mode: Mode, batch_size: int | None) -> Source:
        """The data of a run that does not train."""
        limit = self.limit_val_batches if mode == "val" else None
        return open_source(ds, "ds" if mode == "predict" else f"{mode}_ds", batch_size, limit=limit)

    def limits(self, num_epochs: int | None, max_steps: int | None) -> Limits:
        """The limits of a training run."""
        max_steps = whole_or_none("max_steps", max_steps)
        num_epochs = whole_or_none("num_epochs", num_epochs)
        if self.fast_dev_run:
            return Limits(1, self.fast_dev_run)
        return Limits(1 if num_epochs is None and max_steps is None else num_epochs, max_steps)

    def training_source(
        self, train_ds: Dataset, batch_size: int | None, num_epochs: int | None
    ) -> Source:
        """The training data of a run."""
        few = self.overfit_batches
        limit = few or self.limit_train_batches
        source = open_source(
            train_ds,
            "train_ds",
            batch_size,
            shuffle=few is None,
            limit=limit,
            on_device=None if few is None else False,
        )
        source.keep_states(1)  # because the first batch is read before the run starts
        if few is not None:
            # Copies, because a data set may reuse its memory for each batch.
            batches = [copy.deepcopy(batch) for batch in source.epoch(0)]
            again = per_process(batches) if source.is_share else batches
            source = open_source(again, "train_ds", limit=self.limit_train_batches)
        _check_rereadable(source, num_epochs)
        return source

    def rows(
        self, train_ds: Dataset, batch_size: int | None, epoch: int, batch: int
    ) -> "np.ndarray[Any, np.dtype[np.int64]] | None":
        """The rows of the data set that are in a training batch; None if it cannot say."""
        few = self.overfit_batches
        source = open_source(train_ds, "train_ds", batch_size, shuffle=few is None)
        if source.arrays is None or source.is_share:
            return None
        with suppress(DataError):  # of a class with batches of its own
            return source.arrays.indices(0 if few else epoch, batch)
        return None

    def validation(
        self,
        val_ds: Dataset,
        batch_size: int | None,
        train_ds: Dataset,
        num_epochs: int | None,
    ) -> Validation | None:
        """The validation of a run; None without a validation set.

        Raises:
            ValueError: `val_every_n_steps` has no validation set.
        """
        every = self.val_every_n_steps
        if val_ds is not None:
            val = open_source(
                val_ds,
                "val_ds",
                batch_size,
                limit=self.limit_val_batches,
                like=train_ds,
                on_device=None,
            )
            _check_rereadable(val, None if every else num_epochs)
            return Validation(val, every)
        if every:
            raise ValueError(
                f"val_every_n_steps={every} needs a validation set: "
                f"write `trainer.fit(exp, train_ds, val_ds)`"
            )
        return None


def error_bars(
    confidence: float | None, replicates: int = 1000
) -> Callable[[Experiment, Batch], Experiment] | None:
    """Makes an Experiment whose evaluation has error bars, for a first batch; None without them.

    Raises:
        ValueError: a number is out of range.
    """
    if confidence is None:
        return None
    from solstice.resampling import Resampled, check_settings  # only runs with error bars load it

    check_settings(confidence, replicates)

    def wrap(experiment: Experiment, batch: Batch) -> Experiment:
        made = Resampled(experiment, confidence=confidence, replicates=replicates)
        return made.setup(batch)

    return wrap


def _check_rereadable(source: Source, num_epochs: int | None) -> None:
    """Raises a DataError if a generator, which is read only once, must serve several epochs."""
    if source.is_generator and source.limit is None and num_epochs is not None and num_epochs > 1:
        raise DataError(
            f"{source.name} is a generator, a one-shot iterator, and num_epochs={num_epochs} reads "
            f"it {num_epochs} times. Pass the function that makes it instead: "
            f"`{source.name}=my_generator` without the call, or a list"
        )


def _confidence(value: object) -> float | None:
    def fits(x: float) -> bool:
        return 0 < x < 1

    return None if value is None else number("val_confidence", value, "between 0 and 1", fits)


def _num_tried(fast_dev_run: object) -> int | None:
    """The number of batches of a `fast_dev_run`; None for a normal run."""
    if isinstance(fast_dev_run, bool | np.bool_):
        return 1 if fast_dev_run else None
    is_off = type(fast_dev_run) is int and fast_dev_run == 0  # 0.0 is refused, like all floats
    return None if is_off else whole("fast_dev_run", fast_dev_run, 1, "batches, True or False")
