"""RunState: the current moment of a run, and the records and snapshots made of it."""

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import jax

from solstice._callback import Callback
from solstice._digests import Digests
from solstice._engine import Block, Stepper
from solstice._experiment import Experiment, unwrapped
from solstice._loop._computation import Computation
from solstice._loop._epoch import Call, Epoch, Point
from solstice._loop._hooks import Hooks
from solstice._loop._kept import Kept
from solstice._loop._lost import lost
from solstice._loop._stages import Stage
from solstice._metrics import to_host
from solstice._record import Lazy, Once, Record, Snapshot, Times, changed, made
from solstice._sources import Source

if TYPE_CHECKING:
    from solstice._loop._snapshot import Position

_HELD_BYTES = 2**26
"""The largest state of which a copy is held, so that a signal can cut a validation short."""


class RunState:
    """The current moment of a run, with its Experiment, and the records of it for callbacks.

    Args:
        stage: the data set, with its stepper.
        hooks: the callbacks of the run.
        start: the first moment.
        computation: the steps of the run, for snapshots.
        validation: the validation set of a training run, for snapshots.
        experiment: the Experiment to evaluate; None in training, where the stepper has it.
        kept: the fields of the run around a validation.
        epoch: the state of the epoch in which a resumed run continues.

    Attributes:
        at: the current moment.
        kept: the fields of records that callbacks may have kept.
        epoch: the state of the current epoch.
        is_lost: whether a compiled call failed, and the Experiment is lost.
    """

    def __init__(
        self,
        stage: Stage,
        hooks: Hooks,
        start: Record,
        computation: Computation,
        validation: Source | None = None,
        experiment: Experiment | None = None,
        kept: Kept | None = None,
        epoch: Epoch | None = None,
    ) -> None:
        self.at = start
        self.kept = kept or Kept()
        self.epoch = self._next = epoch or Epoch()
        self.is_lost = False
        self._stage = stage
        self._hooks = hooks
        self._computation = computation
        self._validation = validation
        self._experiment = experiment

    def follow(self, stage: Stage) -> None:
        """Continues with the stage of another Experiment."""
        self._stage = stage

    @property
    def _stepper(self) -> Stepper:
        return self._stage.stepper

    @property
    def steps_epochs(self) -> bool:
        """Whether the run calls `epoch_step`."""
        return self._stage.steps_epochs

    @property
    def trains(self) -> bool:
        """Whether this is a training run."""
        return self.at.mode == "train"

    @property
    def experiment(self) -> Experiment:
        """The newest Experiment; in a run that does not train, the given one.

        Raises:
            RuntimeError: a compiled call failed, and the Experiment is lost.
        """
        if self.is_lost:
            raise RuntimeError(self.lost)
        return self._stepper.share_experiment() if self._experiment is None else self._experiment

    def _shared(self) -> Experiment:
        """The newest Experiment for callbacks, without one that only evaluates it."""
        return unwrapped(self._stepper.share_experiment())

    @property
    def lost(self) -> str:
        """The message if the Experiment is lost."""
        return lost(gave_up=self._stepper.ownership.gives_up)

    def close(self) -> None:
        """Makes the last Experiment, which `fit` returns and `trainer.experiment` is."""
        # Once: two with the same arrays would each be another owner, in a later `donate=True`.
        if not self.is_lost:
            self._experiment = self.experiment

    @property
    def count(self) -> int:
        """The count for cadences: training steps of the run, or steps of this evaluation."""
        return self.at.step if self.trains else self.at.epoch_step

    @property
    def times(self) -> Times:
        """The times of a training run; those of an evaluation are not kept."""
        return self.at.times if self.trains else Times()

    def start_epoch(self, at: Record) -> None:
        """Sets the moment before the first step of an epoch."""
        self.at, self.epoch, self._next = at, self._next, Epoch()

    def start_call(self, call: Call) -> None:
        """Sets the moment before the first step of a call, which runs already."""
        self.epoch.call, self.epoch.count, self.epoch.following = call, 0, None
        self.epoch.has_met = False

    def move_to(self, call: Call, count: int) -> None:
        """Sets the moment after the `count`-th step of a call."""
        start, self.epoch.count = call.start, count
        self.at = changed(
            start,
            step=start.step + (count if self.trains else 0),
            epoch_step=start.epoch_step + count,
            num_examples=start.num_examples + count * call.block.num_examples,
        )

    def rewind(self, call: Call) -> None:
        """Restores the arrays of this moment, as if the call had ended here."""
        if self.epoch.count < len(call):
            self._stepper.rewind(call.block, self.epoch.count)

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the epoch; none before its end."""
        return {} if self.epoch.metrics is None else self.epoch.metrics.make()

    def end_epoch(self) -> None:
        """Takes the metrics of the epoch."""
        self.kept.settle()
        self.epoch.is_complete = self._hooks.stop is None
        if self.steps_epochs and self.epoch.totals is None:
            self.epoch.before_end = self._stepper.totals()
        self.epoch.metrics = self._take_metrics()

    def metrics_of_epoch(self) -> dict[str, Any]:
        """The metrics of the epoch and of its newest validation, as `epoch_step` gets them."""
        both = {"train": self.metrics, "val": self._validated}
        return {f"{mode}/{name}": x for mode, found in both.items() for name, x in found.items()}

    @property
    def _validated(self) -> dict[str, Any]:
        return {} if self.epoch.validated is None else self.epoch.validated.make()

    def before_step(self, block: Block, name: str, callback: Callback) -> object:
        """A field of `needs` in `on_step_start`, for the first step of a block."""
        del callback
        return block.batches[0] if name == "batch" else self._shared()

    def after_step(self, name: str, callback: Callback) -> object:
        """A field of `needs` in `on_step_end`."""
        if name == "experiment":
            return self._shared()
        if name == "snapshot":
            return Lazy(self.snapshot)  # it costs a copy of the weights, so only if it is read
        if name == "metrics":
            taken = self._take_metrics(self._hooks.reader(callback))
            if callback.waits_for_device:
                self.kept.fetch()
            return self._with_measured(taken)
        if name == "digests":
            return self.digests()
        call, index = self.epoch.call, self.epoch.count - 1
        if call is None:
            return None
        return call.block.batches[index] if name == "batch" else call.outputs[index]

    def of_run(self) -> Record:
        """The record in `on_fit_start`, `on_fit_end` and `on_exception`."""
        # A lost Experiment raises only when a callback reads it.
        return changed(self.at, given={"experiment": self.kept.field(lambda: self.experiment)})

    def of_epoch(self) -> Record:
        """The record in `on_epoch_start` and `measure`."""
        # Shared only if a callback reads it, because the next call then copies the state.
        experiment = self.kept.field(self._shared)
        given: dict[str, object] = {"experiment": experiment}
        if self.trains:
            given |= self._of_training()
        return changed(self.at, given=given)

    def of_epoch_end(self) -> Record:
        """The record in `on_epoch_end`."""
        taken = self.epoch.metrics or made({})
        record, metrics = self.of_epoch(), self._with_measured(taken)
        return changed(record, given={**record.given, "metrics": metrics})

    def of_call_end(self) -> Record:
        """The record in `on_call_end`."""
        given: dict[str, Lazy] = {"metrics": self.kept.field(self._metrics_so_far)}
        given |= self._of_training() if self.trains else {}
        return changed(self.at, given=given)

    def _of_training(self) -> dict[str, Lazy]:
        given = {"snapshot": Lazy(self.snapshot)}
        return (
            given if self._hooks.hashes_every is None else given | {"digests": Lazy(self.digests)}
        )

    def digests(self) -> Digests:
        """`record.digests`: of the newest call up to this moment, else of the state."""
        call = self.epoch.call
        hashes = None if call is None else call.outputs.hashes
        if hashes is None:
            return self._stepper.digests(self.at.step)
        return hashes.first(self.epoch.count)

    @property
    def is_small(self) -> bool:
        """Whether a copy of the state may be held for a signal."""
        return self._stepper.state_bytes <= _HELD_BYTES

    def interrupted(self) -> Record:
        """The record of this moment as the one at which a signal ends the run."""
        return changed(self.of_call_end(), interrupted=True)

    def point(self) -> Point:
        """Like `interrupted`, but made now, because callbacks and arrays may change later."""
        record = self.interrupted()
        metrics = partial(to_host, self._stepper.totals()[0])
        given = {"snapshot": record.snapshot, "metrics": Lazy(metrics)}
        return partial(changed, record, given=given)

    def _metrics_so_far(self) -> dict[str, Any]:
        return to_host(self._stepper.totals()[0])

    def _take_metrics(self, reader: int = 0) -> Once:
        """Reads the metrics of a reader, which may be computed later."""
        reading = self._stepper.read_metrics(reader)
        if reading is not None:
            times = self.times
            self.kept.reading(reading, times)
            return Once(lambda: to_host(reading.metrics(times)))  # without the run, to free it
        began = time.perf_counter()
        computed = to_host(self._stepper.take_metrics(reader))
        self.times.device += time.perf_counter() - began
        return made(computed)

    def _with_measured(self, taken: Once) -> Once | dict[str, Any]:
        """The metrics of the step first, which win over the values of `measure`."""
        measured = self._measure()

        def combined() -> dict[str, Any]:
            metrics = taken.make()
            return {**metrics, **measured, **metrics}

        return combined() if taken.is_made else Once(combined)

    def _measure(self) -> dict[str, Any]:
        """The values of `measure`, computed at most once per moment."""
        if not self.trains:
            return {}
        moment = self.count, self.epoch.has_ended
        # Once, because Throughput restarts its clock in `measure`.
        if self.epoch.measured[0] != moment:
            if self._hooks.wait_for_device("measure"):
                self.kept.fetch()
            self.epoch.measured = moment, self._hooks.measured(self.of_epoch)
        return self.epoch.measured[1]

    def snapshot(self) -> Snapshot:
        """`record.snapshot`: the run at this moment."""
        note = {**self._position().note(), "hyperparameters": dict(self.at.hyperparameters)}
        return Snapshot(self._stepper.share_experiment(), note)

    def _position(self) -> "Position":
        # Only runs that save load these modules.
        from solstice._loop._snapshot import Position, by_path, owners_of, states_of

        at, epoch, stop = self.at, self.epoch, self._hooks.stop
        newest, following = epoch.fingerprints()
        # At the end of an epoch there are metrics so far only if `max_steps` ended it.
        totals = epoch.totals or epoch.before_end or self._stepper.totals()
        readers = zip(self._hooks.reader_names, totals, strict=True)
        return Position(
            step=at.step,
            epoch=at.epoch,
            epoch_step=at.epoch_step,
            num_examples=at.num_examples,
            is_closed=epoch.is_closed,
            stop=None if stop is None else str(stop),
            steps_per_call=self._stepper.sizes.steps_per_call,
            loops=self._stepper.sizes.loops,
            backend=jax.default_backend(),
            last_batch=newest,
            data=self._stage.source.position(
                at.epoch_step,
                is_closed=epoch.is_closed and not epoch.ended_by_max_steps,
                following=following,
                validation=self._validation,
            ),
            metrics={name: by_path(total) for name, total in readers if total is not None},
            callbacks=states_of(self._hooks.callbacks),
            owners=owners_of(self._hooks.callbacks),
            ended_by_max_steps=epoch.ended_by_max_steps,
            steps_per_epoch=at.steps_per_epoch,
            computation=self._computation.note(),
            is_logged=epoch.is_logged,
            validated=self._validated,
            about=self._computation.about,
        )
