"""Callback: the hooks of a run."""

import enum
import inspect
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, Literal, cast

from solstice._record import Record
from solstice._types import MODES, Mode

NEEDS = ("outputs", "batch", "experiment", "metrics", "snapshot", "digests")


class Phase(enum.IntEnum):
    """`phase = solstice.Phase.SAVE`: when a callback runs, among the callbacks of one moment.

    Attributes:
        LOG: callbacks that show or log. Validation follows.
        MONITOR: callbacks that watch the metrics and may stop the run.
        SAVE: callbacks that save the run, with the new state of the monitors.
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

    Each hook receives a `Record`; `record.mode` is "train" in training. A run calls `on_fit_start`,
    `on_epoch_start`, `on_step_start`, `on_step_end`, `on_call_end`, `on_epoch_end`, `on_fit_end`,
    in this order. At one moment, callbacks run by their `phase`, and within a phase in the order of
    the Trainer's list.

    The Trainer refuses a method named `on_...` that is not a hook, since nothing would call it. If
    a callback has an attribute `monitor`, such as "val/loss", `fit` refuses a name that is not
    among the metrics of the steps.

    Attributes:
        every: call `on_step_start` and `on_step_end` at every n-th step; None is never. In training
            this counts the steps of the run, so the cadence does not restart with an epoch.
        modes: call the hooks only at moments with one of these `record.mode`, such as ("train",).
            The start and the end of a run have the mode of the run: "train" in `fit`, also for a
            callback that watches its validations.
        needs: the fields of the record that the step hooks read, of "outputs", "batch",
            "experiment", "metrics", "snapshot" and "digests". List only those you use: each costs
            time.
        phase: the order within one moment, a `solstice.Phase`. `fit` validates between LOG and
            MONITOR.
        can_stop: False promises that the step hooks raise nothing, not even `Stop`. The Trainer
            then keeps no copy of the state to return to that step, which saves memory. If a hook
            raises anyway, the run ends with the Experiment of the end of the call.
        waits_for_device: False to call `on_epoch_start` and `on_epoch_end`, and `on_step_end` with
            metrics, while the device may still compute the steps before them, so that the run goes
            on meanwhile; `record.metrics` waits when you read it. With True, a clock in these hooks
            measures finished steps.
        has_side_effects: True for a callback that writes files or reports elsewhere.
            `Trainer(fast_dev_run=True)` leaves it out.
        processes: of a run in several processes, "all" to call the hooks in each, or "first" to
            call them in process 0 alone, such as for a progress bar. A callback that stops or saves
            the run needs "all"; its numbers are the same in all. `measure` is called in all.
        saves: True for a callback that saves the run in `on_call_end` if `record.interrupted`. With
            one, SIGTERM and Ctrl-C end the run where it can be saved; a second signal ends it at
            once.
        call_ends: numbers of steps since the start of `fit`, or of an evaluation, after which a
            compiled call ends, so that `on_call_end` is called there.
    """

    every: int | None = 1
    modes: Collection[Mode] = MODES
    needs: Collection[str] = ()
    phase: Phase = Phase.LOG
    can_stop: bool = True
    waits_for_device: bool = True
    has_side_effects: bool = False
    processes: Literal["first", "all"] = "all"
    saves: bool = False
    call_ends: Collection[int] = ()

    @property
    def run_folder(self) -> Path | None:
        """`return self.directory`: the folder of the run, if this callback writes there.

        The Trainer keeps the file `run.json` in it, which `solstice.runs.read` reads. A relative
        path is resolved after `on_fit_start`.
        """
        return None

    def on_fit_start(self, record: Record) -> None:
        """Before the first step of a run, in every mode. The record has `experiment`."""

    def on_epoch_start(self, record: Record) -> None:
        """Before an epoch or an evaluation. The record has `experiment`.

        In training, it also has `snapshot`.
        """

    def on_step_start(self, record: Record) -> None:
        """Before a step. The record has the batch and the Experiment, if they are in `needs`."""

    def on_step_end(self, record: Record) -> None:
        """After a step. The record has the fields in `needs`."""

    def on_epoch_end(self, record: Record) -> None:
        """After an epoch or an evaluation. The record has `metrics` and `experiment`.

        In training, it also has `snapshot`; in the mode "predict", there are no `metrics`.
        """

    def on_fit_end(self, record: Record) -> None:
        """After a run that ended normally or by `Stop`. The record has `experiment`."""

    def on_call_end(self, record: Record) -> None:
        """After a compiled call (or up to 8 single-step calls), after the hooks of its steps.

        The number of steps per call depends on the speed of the machine. Use this hook to save or
        to show, not for anything that must be the same in every run.

        `record.metrics` are those of the epoch so far. In training, the record has `snapshot`.
        If a signal ends a run with a callback that `saves`, a last call of this hook has
        `record.interrupted`, and `on_exception` follows. The snapshot is then of the newest moment
        that can be resumed exactly, such as the one before a validation that was cut short.
        """

    def on_compile(self, record: Record) -> None:
        """After a call that compiled something; `record.compilation` has the reason."""

    def measure(self, record: Record) -> Mapping[str, Any]:
        """`return {"lr": ...}`: values to add to the training metrics of all callbacks.

        Called when metrics are read: at a step at which a callback needs metrics, and at the end
        of a training epoch. The record has `experiment`.
        """
        del record
        return {}

    def state_dict(self) -> dict[str, Any]:
        """`return {"best": self.best}`: the state of this callback, for a checkpoint.

        It may hold None, numbers, text, bytes and arrays, in lists, tuples and dicts with text
        keys. Use a `solstice.checkpoint.AppendOnly` for a list that grows with the run: a
        checkpoint then writes only its new entries.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`, after `on_fit_start` of a resumed run."""

    def state_key(self) -> dict[str, Any]:
        """`return {"monitor": self.monitor}`: the settings on which `state_dict` depends.

        A resumed run restores a state only to a callback of the same class and key. The default is
        `monitor` and `mode`, if the callback has these attributes. Allowed values: as in
        `state_dict`.
        """
        found = {name: getattr(self, name, None) for name in ("monitor", "mode")}
        return {name: v for name, v in found.items() if v is not None and is_setting(v)}

    def state_hint(self) -> dict[str, Any]:
        """`return {"path": self.path}`: distinguish callbacks of the same class and `state_key`.

        Each gets the state of the saved callback with the most similar hint, so a hint may change
        between runs; paths may be `pathlib.Path`. The default is the constructor's arguments that
        are stored in attributes of the same names: numbers, text and paths.
        """
        return kept_arguments(self)

    def on_exception(self, record: Record, error: BaseException) -> None:
        """After a run that ended by an exception or Ctrl-C: close open files and the like."""


def named(callbacks: Iterable[Callback]) -> dict[str, Callback]:
    """The callbacks by class name, numbered if a class occurs more than once."""
    found: dict[str, Callback] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        count = sum(type(other).__name__ == kind for other in found.values())
        found[kind if count == 0 else f"{kind}-{count + 1}"] = callback
    return found


def kept_arguments(callback: Any) -> dict[str, Any]:
    """The constructor's arguments that an object stores: numbers, text and paths only."""
    kept = cast("dict[str, Any]", vars(callback))
    with suppress(TypeError, ValueError):  # not every constructor has a signature
        names = inspect.signature(cast("Any", type(callback))).parameters
        # An ellipsis for what is not stored, because None is a setting.
        given: dict[str, Any] = {name: kept.get(name, kept.get(f"_{name}", ...)) for name in names}
        return {name: value for name, value in given.items() if is_setting(value)}
    return {}


def is_setting(value: object) -> bool:
    """Whether a value can be a setting of an object, not its state: a number, text or a path."""
    return isinstance(value, str | PurePath) or type(value) in (bool, int, float, type(None))
