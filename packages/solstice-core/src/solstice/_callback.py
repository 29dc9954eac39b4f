"""Callback: watch a run, and stop it."""

import enum
import inspect
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any, cast

from solstice._record import Record

NEEDS = ("outputs", "batch", "experiment", "metrics", "snapshot")


class Phase(enum.IntEnum):
    """`phase = solstice.Phase.SAVE`: the turn of a callback among those of one moment.

    Attributes:
        LOG: it shows and logs. Validation comes after these.
        MONITOR: it watches, and may stop the run.
        SAVE: it saves the run, with the state of the monitors.
    """

    LOG = 0
    MONITOR = 1
    SAVE = 2


class Callback:
    """Watch a run, and stop it: subclass, and override the hooks you want.

    ```python
    class PrintLoss(solstice.Callback):
        every = 100
        needs = ("metrics",)

        def on_step_end(self, record):
            print(record.step, record.metrics["loss"])
    ```

    The hooks are called in this order, each with a `Record`; `record.mode` tells training from
    evaluation. At one moment, callbacks are called by their `phase`, and within a phase in the
    order of the Trainer's list.

    The Trainer refuses a method that begins with "on_" and is not a hook, since nothing would call
    it. If there is an attribute `monitor`, such as "val/loss", `fit` refuses one that the metrics
    of its steps do not have.

    Attributes:
        every: `on_step_start` and `on_step_end` are called at every so many steps. In training
            global steps are counted, so the cadence does not restart with an epoch. None is never.
        needs: what the step hooks read from their record, of "outputs", "batch", "experiment",
            "metrics" and "snapshot". Ask for no more than you use: it costs time.
        phase: its turn at one moment, a `solstice.Phase`. `fit` validates between LOG and MONITOR.
        can_stop: False is a promise that the hooks of steps raise nothing, not even `Stop`: the
            Trainer then need not be able to go back to that step, which saves memory. If one raises
            all the same, the run ends with the Experiment of the end of the call.
        has_side_effects: True for what writes files or reports elsewhere: left out of a
            `Trainer(fast_dev_run=True)`.
        saves: True for what saves the run in `on_call_end` if `record.interrupted`. With such a
            callback, SIGTERM and Ctrl-C end the run where it can be saved; a second one at once.
    """

    every: int | None = 1
    needs: Collection[str] = ()
    phase: Phase = Phase.LOG
    can_stop: bool = True
    has_side_effects: bool = False
    saves: bool = False

    def on_fit_start(self, record: Record) -> None:
        """Before the first step of a run, in every mode. `record.experiment` is there."""

    def on_epoch_start(self, record: Record) -> None:
        """Before the first step of an epoch, or of an evaluation. `record.experiment` is there."""

    def on_step_start(self, record: Record) -> None:
        """Before a step. Of `needs`, "batch" and "experiment" are there."""

    def on_step_end(self, record: Record) -> None:
        """After a step, with what `needs` names."""

    def on_epoch_end(self, record: Record) -> None:
        """After an epoch, or an evaluation. `record.metrics` and `record.experiment` are there."""

    def on_fit_end(self, record: Record) -> None:
        """After a run that ended by itself or by `Stop`. `record.experiment` is there."""

    def on_call_end(self, record: Record) -> None:
        """After a compiled call, or up to 8 of one step each, whose steps have all been told of.

        How many steps a call has is the Trainer's choice and the machine's, so what is to be alike
        in every run must not depend on this moment: it is for saving and for showing.
        `record.metrics` are those of the epoch so far. In training `record.snapshot` is there.
        Where a signal ends a run with a callback that `saves`, this hook is the last: then
        `record.interrupted` is True, and the snapshot is of the newest moment that can be resumed
        exactly, such as that before a validation which was cut short.
        """

    def on_compile(self, record: Record) -> None:
        """After the first call of a program, which was compiled: `record.compilation` says why."""

    def measure(self, record: Record) -> Mapping[str, Any]:
        """`return {"lr": ...}`: figures that join the training metrics which others are told.

        It is called when metrics are read: at a step that some callback asks for metrics at, and
        at the end of a training epoch. `record.experiment` is there.
        """
        del record
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What this callback remembers of the run, for a checkpoint: override it if there is such.

        None, numbers, text, bytes and arrays, in lists, tuples and dicts with keys of text. A list
        that grows with the run is a `solstice.checkpoint.AppendOnly`, which is not written whole by
        each checkpoint.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave, after `on_fit_start`, when a run is resumed."""

    def state_key(self) -> dict[str, Any]:
        """`return {"monitor": self.monitor}`: what `state_dict` is about, as in `state_dict`.

        A resumed run gives it to a callback of the same class and key alone. By default they are
        `monitor` and `mode`, where the callback has such attributes.
        """
        found = {name: getattr(self, name, None) for name in ("monitor", "mode")}
        return {name: v for name, v in found.items() if v is not None and is_setting(v)}

    def state_hint(self) -> dict[str, Any]:
        """`return {"path": self.path}`: which this is, of several of one class and `state_key`.

        Each takes up the state of the one that was most alike, so what is in the hint may change
        from run to run; paths may be `pathlib.Path`. By default they are the arguments of the
        constructor that are kept in attributes of their names: numbers, text and paths.
        """
        return kept_arguments(self)

    def on_exception(self, record: Record, error: BaseException) -> None:
        """After a run that ended by an exception or by Ctrl-C: close what is open."""


def kept_arguments(callback: Any) -> dict[str, Any]:
    """The arguments of its constructor that an object keeps: numbers, text and paths alone."""
    kept = cast("dict[str, Any]", vars(callback))
    with suppress(TypeError, ValueError):  # the constructor of a class may hide what it takes
        names = inspect.signature(cast("Any", type(callback))).parameters
        given: dict[str, Any] = {name: kept.get(name, kept.get(f"_{name}", ...)) for name in names}
        return {name: value for name, value in given.items() if is_setting(value)}
    return {}


def is_setting(value: Any) -> bool:
    """Whether a value says how an object was made, and not what it has become."""
    return isinstance(value, str | PurePath) or type(value) in (bool, int, float, type(None))
