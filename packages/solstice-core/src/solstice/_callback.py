"""Callback, the record that it receives, and how it stops a run."""

import enum
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any, cast

from solstice._arguments import instance, shown, whole_or_none
from solstice._engine._compiles import Compilation
from solstice._engine._times import Times
from solstice._experiment import Experiment
from solstice._hooks import check_hooks
from solstice._metrics import on_host
from solstice._run._owners import is_setting, kept_arguments
from solstice._run._snapshot import Snapshot, named
from solstice._types import Batch, Mode, Outputs

NEEDS = ("outputs", "batch", "experiment", "metrics", "snapshot")
_NEEDS_BEFORE = ("batch", "experiment")
_AT_STEPS = ("on_step_start", "on_step_end")


class Stop(Exception):  # noqa: N818, a request and no error
    """`raise solstice.Stop("diverged")` in any hook of a callback ends the run.

    It is a request, not a crash: every other callback still hears of the same moment, the epoch
    under way is closed with the metrics so far, `on_fit_end` runs and `fit` returns. Raised at
    the end of a training epoch, it takes effect after that epoch's validation.
    """


class Lazy:
    """Stands in a record for what is made when it is read, since that costs something."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a callback is told at one moment of a run.

    At a step, `outputs`, `batch`, `experiment`, `metrics` and `snapshot` are there for the callback
    whose `needs` names them; reading one that was not asked for raises an AttributeError.

    Attributes:
        mode: "train", "val", "test" or "predict".
        step: training steps taken since `fit` began; 0 in a run that does not train.
        epoch: index of the epoch, from 0.
        epoch_step: steps taken in this epoch of this mode.
        steps_per_epoch: how many there will be, where the data set has a length; else None.
        num_epochs: how many epochs were asked for; None when only `max_steps` bounds the run.
        num_examples: examples seen in this epoch of this mode.
        has_validation: whether `fit` was given a validation set.
        interrupted: whether SIGTERM or Ctrl-C ends the run at this moment.
        times: where the time of training has gone so far.
        given: what this record holds of "outputs", "batch", "experiment", "metrics" and "snapshot".
    """

    mode: Mode
    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    steps_per_epoch: int | None = None
    num_epochs: int | None = None
    num_examples: int = 0
    has_validation: bool = False
    interrupted: bool = False
    times: Times = field(default_factory=Times, repr=False)
    given: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def experiment(self) -> Experiment:
        """The Experiment at this moment. It stays valid after the hook returns."""
        return self._get("experiment")

    @property
    def outputs(self) -> Outputs:
        """What the step returned beside the Experiment (at a step only), as NumPy arrays."""
        return self._get("outputs")

    @property
    def batch(self) -> Batch:
        """The batch of this step (at a step only), as NumPy arrays."""
        return self._get("batch")

    @property
    def metrics(self) -> dict[str, Any]:
        """Computed metrics by name: Python numbers for scalars, NumPy arrays for the rest.

        At the end of an epoch they cover the epoch; at a step, the steps since this callback's
        `on_step_end` was last called; at the end of a call, the epoch so far, which is read back
        from the device if you ask. In training, what callbacks `measure` is among them.
        """
        return self._get("metrics")

    @property
    def snapshot(self) -> Snapshot:
        """The run at this moment, which `Trainer.fit(resume=...)` can go on from.

        It is there at a training step for those that need it, at the end of a training epoch, and
        at the end of a call. Making it costs a copy of the Experiment's arrays.
        """
        return self._get("snapshot")

    @property
    def compilation(self) -> Compilation:
        """What was compiled, and why; in `on_compile` only."""
        return self._get("compilation")

    def _get(self, name: str) -> Any:
        if name not in self.given:
            raise AttributeError(
                f"this record has no {name!r}: it is there at the moments that have one, and at "
                f'a step for a callback that asks for it: write `needs = ("{name}",)` in its class'
            )
        value = self.given[name]
        return value.make() if isinstance(value, Lazy) else value


def changed(record: Record, **values: Any) -> Record:
    """`dataclasses.replace`, four times as fast: a record is made at each step that is watched."""
    new = object.__new__(Record)
    new.__dict__.update(record.__dict__, **values)
    return new


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


def as_callbacks(given: Any) -> list[Any]:
    """`Trainer([History()])`: the callbacks as a list; an error where it is no list of them."""
    if isinstance(given, Callback):
        raise TypeError(
            f"callbacks must be a list: write `[{type(given).__name__}(...)]` in place of the "
            f"{type(given).__name__} alone"
        )
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
        raise TypeError(
            f"callbacks must be a list of solstice.Callback objects, such as "
            f"`[solstice.History()]`, or `[]`; it is {shown(given)}"
        )
    return list(cast("Iterable[Any]", given))


def check_callbacks(callbacks: Collection[Any]) -> list[Callback]:
    """The callbacks by their `phase`; an error that names the first that is not usable."""
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, type):
            raise TypeError(
                f"callbacks: {callback.__name__} is a class; write `{callback.__name__}()`"
            )
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks: {name} is no solstice.Callback; subclass it: {callback!r}")
        whole_or_none(f"{name}.every", callback.every, 1, "steps")
        instance(f"{name}.phase", callback.phase, Phase, "solstice.Phase.LOG, MONITOR or SAVE")
        if isinstance(callback.needs, str):
            raise TypeError(f'{name}.needs is a string; write `needs = ("{callback.needs}",)`')
        if not isinstance(cast("Any", callback.needs), Collection):
            raise TypeError(
                f'{name}.needs must be names, such as ("metrics",); it is {shown(callback.needs)}'
            )
        unknown = sorted(map(str, {*callback.needs} - {*NEEDS}))
        if unknown:
            raise ValueError(f"{name}.needs: {unknown} is not one of {list(NEEDS)}")
        check_hooks(callback, Callback)
    return sorted(callbacks, key=lambda callback: callback.phase)


def before_monitors(callbacks: list[Callback], validation: Callback) -> list[Callback]:
    """The callbacks, and a validation after those that log."""
    logs = [callback for callback in callbacks if callback.phase is Phase.LOG]
    return [*logs, validation, *callbacks[len(logs) :]]


class CallbackList:
    """The callbacks of a run: tells them of each moment, and remembers who asked to stop."""

    def __init__(self, callbacks: list[Callback]) -> None:
        self.callbacks = callbacks
        self._at_start = _at_cadence("on_step_start", callbacks)
        self._at_end = _at_cadence("on_step_end", callbacks)
        self._ends = tuple({every for _, every in self._at_end})
        self._remembering = {
            every
            for callback, every in [*self._at_start, *self._at_end]
            if "metrics" in callback.needs or overrides_hook(callback, "state_dict")
        }
        self._readers = [id(c) for c, _ in self._at_end if "metrics" in c.needs]
        self._settings = [_settings_of(callback) for callback in callbacks]
        self.stop: Stop | None = None

    def check_settings(self) -> None:
        """Refuses callbacks that have changed since: the run has been arranged for what they were.

        Raises:
            TypeError: one has another `every`, for instance, which it would not be called by.
        """
        for callback, before in zip(self.callbacks, self._settings, strict=True):
            now = _settings_of(callback)
            changed = [name for name in before if before[name] != now[name]]
            if changed:
                name, kind = changed[0], type(callback).__name__
                raise TypeError(
                    f"{kind}.{name} was {before[name]!r} when the run began, and is {now[name]!r}: "
                    f"the Trainer reads it once. Set it in `__init__`, or before the run"
                )

    @property
    def num_readers(self) -> int:
        """How many read metrics: the epoch's end, and each callback that does at a step."""
        return 1 + len(self._readers)

    @property
    def reader_names(self) -> list[str]:
        """What each reader is called in a checkpoint."""
        names = {id(callback): name for name, callback in named(self.callbacks).items()}
        return ["epoch", *(names[reader] for reader in self._readers)]

    @property
    def saves(self) -> bool:
        """Whether a callback saves the run when a signal ends it."""
        return any(c.saves and overrides_hook(c, "on_call_end") for c in self.callbacks)

    @property
    def takes_snapshots(self) -> bool:
        """Whether a callback may want a snapshot between two calls."""
        return self.saves or any(
            "snapshot" in c.needs or overrides_hook(c, "on_call_end") for c in self.callbacks
        )

    def is_remembered(self, count: int) -> bool:
        """Whether what callbacks remember, or read metrics for, depends on the `count`-th step."""
        return any(count % every == 0 for every in self._remembering)

    def measured(self, make_record: Callable[[], Record]) -> dict[str, Any]:
        """What all of them measure at a moment of training."""
        those = _those_with("measure", self.callbacks)
        record = make_record() if those else None
        found: dict[str, Any] = {}
        for callback in those:
            values = self._call(callback, "measure", cast("Record", record))
            if values is not None and not isinstance(values, Mapping):
                raise TypeError(
                    f"{type(callback).__name__}.measure must return what it measures by name, "
                    f'such as {{"temperature": 0.7}}; it returned {values!r:.60}'
                )
            found |= on_host(cast("Mapping[str, Any]", values or {}))
        return found

    def reader(self, callback: Callback) -> int:
        """Which reader a callback is; 0 is the epoch's end."""
        return 1 + self._readers.index(id(callback))

    def notify(self, hook: str, make_record: Callable[[], Record]) -> None:
        """Tells all of a moment that is no step; the record is made if there is a listener."""
        listeners = _those_with(hook, self.callbacks)
        record = make_record() if listeners else None
        for callback in listeners:
            self._call(callback, hook, cast("Record", record))

    def notify_step_start(
        self, record: Record, count: int, given: Callable[[str, Callback], Any]
    ) -> None:
        """Tells those whose cadence falls on the step to come, the `count`-th."""
        for callback, every in self._at_start:
            if count % every == 0:
                asked = {
                    name: given(name, callback) for name in callback.needs if name in _NEEDS_BEFORE
                }
                self._call(callback, "on_step_start", changed(record, given=asked))

    def is_due(self, count: int) -> bool:
        """Whether the cadence of any falls on the `count`-th step, when it is taken."""
        for every in self._ends:  # noqa: SIM110, `any` takes twice as long, at each step
            if count % every == 0:
                return True
        return False

    def notify_step_end(
        self, record: Record, count: int, given: Callable[[str, Callback], Any]
    ) -> None:
        """Tells those whose cadence falls on the step just taken, the `count`-th."""
        for callback, every in self._at_end:
            if count % every == 0:
                if callback.needs:
                    asked = {
                        name: given(name, callback)
                        for name in callback.needs
                        if name != "snapshot" or record.mode == "train"
                    }
                    self._call(callback, "on_step_end", changed(record, given=asked))
                else:
                    self._call(callback, "on_step_end", record)

    def notify_exception(self, record: Record, error: BaseException) -> None:
        """Tells all, whatever they raise themselves, which becomes a note of the error."""
        for callback in self.callbacks:
            try:
                callback.on_exception(record, error)
            except Exception as second:
                error.add_note(f"{type(callback).__name__}.on_exception raised {second!r}")

    def _call(self, callback: Callback, hook: str, record: Record) -> Any:
        try:
            return getattr(callback, hook)(record)
        except Stop as stop:
            if hook in _AT_STEPS and not callback.can_stop:
                raise RuntimeError(
                    f"{type(callback).__name__}.{hook} asked to stop, and its `can_stop = False` "
                    f"promises that it does not: leave that line out"
                ) from stop
            self.stop = self.stop or stop
            return None
        except StopIteration as error:  # which would end a generator, and say no more whose it was
            raise RuntimeError(
                f"{type(callback).__name__}.{hook} raised StopIteration: a `next(...)` in it found "
                f"nothing more. To end the run write `raise solstice.Stop(...)`"
            ) from error


def _settings_of(callback: Callback) -> dict[str, Any]:
    return {
        "every": callback.every,
        "needs": tuple(callback.needs),
        "phase": callback.phase,
        "can_stop": callback.can_stop,
    }


def overrides_hook(callback: Callback, hook: str) -> bool:
    """Whether the callback has a `hook` of its own."""
    method = getattr(callback, hook)  # one that was set on the instance, too
    return getattr(method, "__func__", None) is not getattr(Callback, hook)


def listens_to_steps(callback: Callback, hook: str) -> bool:
    """Whether the callback is ever told of steps by `hook`."""
    return callback.every is not None and overrides_hook(callback, hook)


def _at_cadence(hook: str, callbacks: list[Callback]) -> list[tuple[Callback, int]]:
    heard = [c for c in callbacks if listens_to_steps(c, hook)]
    return [(c, index(cast("int", c.every))) for c in heard]


def _those_with(hook: str, callbacks: list[Callback]) -> list[Callback]:
    return [callback for callback in callbacks if overrides_hook(callback, hook)]
