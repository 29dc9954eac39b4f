"""Hooks: the callbacks of a run, checked, ordered, and called at each moment."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import index
from typing import Any, cast

from solstice._arguments import instance, shown, whole_or_none
from solstice._callback import NEEDS, Callback, Phase, named
from solstice._hooks import check_hooks
from solstice._loop._due import AT_STEPS, at_cadence, due_steps, overrides_hook
from solstice._metrics import on_host
from solstice._record import Record, Stop, changed
from solstice._types import MODES, Mode

_NEEDS_BEFORE = ("batch", "experiment")  # the others exist only after the step
_IN_TRAINING = ("snapshot", "digests")


def as_callbacks(given: Any) -> list[Any]:
    """`as_callbacks([History()])`: the callbacks as a list.

    Raises:
        TypeError: `given` is not a list, such as a single callback.
    """
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
    """The callbacks in the order of their `phase`.

    Raises:
        TypeError: one is not a callback, or has a wrong hook or attribute.
        ValueError: one has an `every` that is not an integer of 1 or more, an unknown entry in
            `modes` or `needs`, or no `modes`.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, type):
            raise TypeError(
                f"callbacks: {callback.__name__} is a class; write `{callback.__name__}()`"
            )
        if not isinstance(callback, Callback):
            raise TypeError(
                f"callbacks: {name} is not a solstice.Callback; subclass it: {callback!r}"
            )
        whole_or_none(f"{name}.every", callback.every, 1, "steps")
        instance(f"{name}.phase", callback.phase, Phase, "solstice.Phase.LOG, MONITOR or SAVE")
        _check_names(name, "needs", callback.needs, NEEDS)
        _check_names(name, "modes", callback.modes, MODES)
        _check_names(name, "processes", (callback.processes,), ("first", "all"))
        if not callback.modes:
            raise ValueError(f"{name}.modes is empty, so no hook would be called: {list(MODES)}")
        check_hooks(callback, Callback)
    # `sorted` is stable, so callbacks of one phase keep the user's order.
    return sorted(callbacks, key=lambda callback: callback.phase)


def _check_names(callback: str, attribute: str, given: object, known: Sequence[str]) -> None:
    """Checks that an attribute is a collection of known names."""
    if isinstance(given, str):
        raise TypeError(f'{callback}.{attribute} is a string; write `{attribute} = ("{given}",)`')
    if not isinstance(given, Collection):
        raise TypeError(
            f'{callback}.{attribute} must be names, such as ("{known[0]}",); it is {shown(given)}'
        )
    unknown = [name for name in cast("Collection[object]", given) if name not in known]
    if unknown:
        raise ValueError(f"{callback}.{attribute}: {unknown} is not one of {list(known)}")


class Hooks:
    """The callbacks of a run: calls their hooks, and keeps the first request to stop.

    Args:
        callbacks: the callbacks, in the order of their phases.
        mode: the mode of the run.
        stop: the request to stop of a saved run, or None.
        outer: the hooks of the training run around a validation, or None.
        is_lead: whether this process calls the callbacks that one process alone calls.

    Attributes:
        callbacks: all callbacks.
        listeners: those that are called in this mode, in any process. They decide how long calls
            are, and what is compiled, so they are the same in all processes.
    """

    def __init__(
        self,
        callbacks: list[Callback],
        mode: Mode,
        stop: Stop | None = None,
        outer: "Hooks | None" = None,
        is_lead: bool = True,
    ) -> None:
        self.callbacks = callbacks
        self.listeners = [callback for callback in callbacks if mode in callback.modes]
        self._is_lead = is_lead
        self._called = [c for c in self.listeners if is_lead or c.processes == "all"]
        self._due = due_steps(self.listeners, self._called)
        # By identity, because two callbacks may be equal.
        self._readers = [
            id(c) for c, _ in at_cadence("on_step_end", self.listeners) if "metrics" in c.needs
        ]
        self._settings = [_settings_of(callback) for callback in callbacks]
        self._stop = stop
        self._outer = outer
        self._nested: Hooks | None = None

    @property
    def stop(self) -> Stop | None:
        """The first request to stop, or None."""
        return self._stop

    def nested(self) -> "Hooks":
        """The hooks of a validation. A request to stop from before does not end it.

        A request from within the validation ends both runs.
        """
        # Once for a run, because each epoch may have a validation.
        if self._nested is None:
            self._nested = Hooks(self.callbacks, "val", outer=self, is_lead=self._is_lead)
        self._nested._stop = None
        return self._nested

    def request(self, stop: Stop) -> None:
        """Keeps a request to stop, if it is the first."""
        self._stop = self._stop or stop
        if self._outer is not None:
            self._outer.request(stop)

    def _take(self, error: Stop | StopIteration, callback: Callback, hook: str) -> None:
        """Keeps a request to stop, and refuses a StopIteration."""
        name = f"{type(callback).__name__}.{hook}"
        if isinstance(error, StopIteration):  # it would silently end a generator of the Trainer
            raise RuntimeError(
                f"{name} raised StopIteration: the iterator of a `next(...)` in it is exhausted. "
                f"To end the run write `raise solstice.Stop(...)`"
            ) from error
        if hook in AT_STEPS and not callback.can_stop:
            raise RuntimeError(
                f"{name} asked to stop, and its `can_stop = False` promises that it does not: "
                f"remove that line"
            ) from error
        self.request(error.with_traceback(None))  # its frames refer to the run

    def check_settings(self) -> None:
        """Refuses callbacks with changed settings, because the run reads them only once.

        Raises:
            TypeError: an attribute such as `every`, `modes` or `needs` of one has changed.
        """
        for callback, before in zip(self.callbacks, self._settings, strict=True):
            now = _settings_of(callback)
            changed = [name for name in before if before[name] != now[name]]
            if changed:
                name, kind = changed[0], type(callback).__name__
                raise TypeError(
                    f"{kind}.{name} was {before[name]!r} at the start of the run, and is "
                    f"{now[name]!r}: the Trainer reads it once, so set it in `__init__`"
                )

    def wait_for_device(self, hook: str) -> bool:
        """Whether a callback with this hook wants the device to have finished the steps before."""
        return any(callback.waits_for_device for callback in _those_with(hook, self.listeners))

    def saves_at(self, count: int) -> bool:
        """Whether a callback of the phase SAVE is due at the `count`-th step."""
        return any(count % every == 0 for every in self._due.saving)

    @property
    def num_readers(self) -> int:
        """The number of accumulators of metrics: one for the epoch, one per reading callback."""
        return 1 + len(self._readers)

    @property
    def reader_names(self) -> list[str]:
        """The names of the readers in a checkpoint."""
        names = {id(callback): name for name, callback in named(self.callbacks).items()}
        return ["epoch", *(names[reader] for reader in self._readers)]

    @property
    def saves(self) -> bool:
        """Whether a callback saves the run when a signal ends it."""
        return any(c.saves and overrides_hook(c, "on_call_end") for c in self.listeners)

    @property
    def hashes_every(self) -> int | None:
        """The steps between two digests of the state, 0 for none; None without any digests."""
        needing = [c.every for c in self.listeners if "digests" in c.needs]
        return math.gcd(*(index(every) for every in needing if every)) if needing else None

    @property
    def read_batches(self) -> bool:
        """Whether a callback reads batches."""
        return any("batch" in callback.needs for callback in self.listeners)

    @property
    def takes_snapshots(self) -> bool:
        """Whether a callback may read a snapshot between two calls."""
        return self.saves or any(
            "snapshot" in c.needs or overrides_hook(c, "on_call_end") for c in self.listeners
        )

    def is_remembered(self, count: int) -> bool:
        """Whether the `count`-th step can change the state of a callback."""
        return any(count % every == 0 for every in self._due.remembering)

    def measured(self, make_record: Callable[[], Record]) -> dict[str, Any]:
        """The values of all `measure` hooks at a moment of training."""
        those = _those_with("measure", self.listeners)
        record = make_record() if those else None
        found: dict[str, Any] = {}
        for callback in those:
            values: Any = None
            try:
                values = callback.measure(cast("Record", record))
            except (Stop, StopIteration) as error:
                self._take(error, callback, "measure")
            if values is not None and not isinstance(values, Mapping):
                raise TypeError(
                    f"{type(callback).__name__}.measure must return values by name, such as "
                    f'{{"temperature": 0.7}}; it returned {values!r:.60}'
                )
            found |= on_host(cast("Mapping[str, Any]", values or {}))
        return found

    def reader(self, callback: Callback) -> int:
        """The index of a callback among the readers; 0 is the epoch."""
        return 1 + self._readers.index(id(callback))

    def notify(
        self, hook: str, make_record: Callable[[], Record], phases: Collection[Phase] = ()
    ) -> None:
        """Calls a hook, not of a step, in these phases, or in all.

        The record is made only if a callback has the hook.
        """
        listeners = _those_with(hook, self._called)
        if phases:
            listeners = [callback for callback in listeners if callback.phase in phases]
        record = make_record() if listeners else None
        for callback in listeners:
            try:
                getattr(callback, hook)(record)
            except (Stop, StopIteration) as error:
                self._take(error, callback, hook)

    def notify_step_start(
        self, record: Record, count: int, given: Callable[[str, Callback], Any]
    ) -> None:
        """Calls `on_step_start` of those whose cadence includes the next step, the `count`-th."""
        for callback, every in self._due.at_start:
            if count % every == 0:
                asked = {
                    name: given(name, callback) for name in callback.needs if name in _NEEDS_BEFORE
                }
                try:
                    callback.on_step_start(changed(record, given=asked))
                except (Stop, StopIteration) as error:
                    self._take(error, callback, "on_step_start")

    def is_due(self, count: int) -> bool:
        """Whether any `on_step_end` is due at the `count`-th step."""
        for every in self._due.ends:  # noqa: SIM110, `any` takes twice as long, at each step
            if count % every == 0:
                return True
        return False

    def notify_step_end(
        self,
        phases: Collection[Phase],
        record: Record,
        count: int,
        given: Callable[[str, Callback], Any],
    ) -> None:
        """Calls `on_step_end` of those in these phases whose cadence includes a step."""
        for phase in phases:
            for callback, every in self._due.at_end[phase]:
                if count % every:
                    continue
                needs = callback.needs
                asked = needs and {
                    name: given(name, callback)
                    for name in needs
                    # An evaluation cannot be resumed, and is not hashed.
                    if name not in _IN_TRAINING or record.mode == "train"
                }
                try:  # here and not in a function, which would cost time at each step
                    callback.on_step_end(changed(record, given=asked) if asked else record)
                except (Stop, StopIteration) as error:
                    self._take(error, callback, "on_step_end")

    def notify_exception(self, record: Record, error: BaseException) -> None:
        """Calls `on_exception` of all; an exception that one raises becomes a note of `error`."""
        for callback in self._called:
            try:
                callback.on_exception(record, error)
            except Exception as second:  # the next callback may have a file to close
                error.add_note(f"{type(callback).__name__}.on_exception raised {second!r}")


def _settings_of(callback: Callback) -> dict[str, Any]:
    return {
        "every": callback.every,
        "modes": tuple(callback.modes),
        "needs": tuple(callback.needs),
        "phase": callback.phase,
        "can_stop": callback.can_stop,
        "processes": callback.processes,
        "waits_for_device": callback.waits_for_device,
        "call_ends": tuple(callback.call_ends),
    }


def _those_with(hook: str, callbacks: list[Callback]) -> list[Callback]:
    return [callback for callback in callbacks if overrides_hook(callback, hook)]
