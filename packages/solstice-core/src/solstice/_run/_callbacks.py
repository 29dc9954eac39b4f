"""CallbackList: the callbacks of a run, checked, ordered, and called at each moment."""

from collections.abc import Callable, Collection, Iterable, Mapping
from operator import index
from typing import Any, cast

from solstice._arguments import instance, shown, whole_or_none
from solstice._callback import NEEDS, Callback, Phase
from solstice._hooks import check_hooks
from solstice._metrics import on_host
from solstice._record import Record, Stop, changed
from solstice._run._snapshot import named

_NEEDS_BEFORE = ("batch", "experiment")


_AT_STEPS = ("on_step_start", "on_step_end")


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
        ValueError: one has an `every` that is not an integer of 1 or more, or an unknown entry in
            `needs`.
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
    """The callbacks, with the validation after those of the phase LOG."""
    logs = [callback for callback in callbacks if callback.phase is Phase.LOG]
    return [*logs, validation, *callbacks[len(logs) :]]


class CallbackList:
    """The callbacks of a run: calls their hooks, and keeps the first request to stop."""

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
        """Refuses callbacks with changed settings, because the run reads them only once.

        Raises:
            TypeError: `every`, `needs`, `phase` or `can_stop` of one has changed.
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
        return any(c.saves and overrides_hook(c, "on_call_end") for c in self.callbacks)

    @property
    def takes_snapshots(self) -> bool:
        """Whether a callback may read a snapshot between two calls."""
        return self.saves or any(
            "snapshot" in c.needs or overrides_hook(c, "on_call_end") for c in self.callbacks
        )

    def is_remembered(self, count: int) -> bool:
        """Whether the `count`-th step can change the state of a callback."""
        return any(count % every == 0 for every in self._remembering)

    def measured(self, make_record: Callable[[], Record]) -> dict[str, Any]:
        """The values of all `measure` hooks at a moment of training."""
        those = _those_with("measure", self.callbacks)
        record = make_record() if those else None
        found: dict[str, Any] = {}
        for callback in those:
            values = self._call(callback, "measure", cast("Record", record))
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

    def notify(self, hook: str, make_record: Callable[[], Record]) -> None:
        """Calls a hook, not of a step; the record is made only if a callback has the hook."""
        listeners = _those_with(hook, self.callbacks)
        record = make_record() if listeners else None
        for callback in listeners:
            self._call(callback, hook, cast("Record", record))

    def notify_step_start(
        self, record: Record, count: int, given: Callable[[str, Callback], Any]
    ) -> None:
        """Calls `on_step_start` of those whose cadence includes the next step, the `count`-th."""
        for callback, every in self._at_start:
            if count % every == 0:
                asked = {
                    name: given(name, callback) for name in callback.needs if name in _NEEDS_BEFORE
                }
                self._call(callback, "on_step_start", changed(record, given=asked))

    def is_due(self, count: int) -> bool:
        """Whether any `on_step_end` is due at the `count`-th step."""
        for every in self._ends:  # noqa: SIM110, `any` takes twice as long, at each step
            if count % every == 0:
                return True
        return False

    def notify_step_end(
        self, record: Record, count: int, given: Callable[[str, Callback], Any]
    ) -> None:
        """Calls `on_step_end` of those whose cadence includes the `count`-th step."""
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
        """Calls `on_exception` of all; an exception that one raises becomes a note of `error`."""
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
                    f"promises that it does not: remove that line"
                ) from stop
            self.stop = self.stop or stop
            return None
        except StopIteration as error:  # because it would silently end a generator of the Trainer
            raise RuntimeError(
                f"{type(callback).__name__}.{hook} raised StopIteration: the iterator of a "
                f"`next(...)` in it is exhausted. To end the run write `raise solstice.Stop(...)`"
            ) from error


def _settings_of(callback: Callback) -> dict[str, Any]:
    return {
        "every": callback.every,
        "needs": tuple(callback.needs),
        "phase": callback.phase,
        "can_stop": callback.can_stop,
    }


def overrides_hook(callback: Callback, hook: str) -> bool:
    """Whether the callback overrides `hook`."""
    method = getattr(callback, hook)  # also one that was set on the instance
    return getattr(method, "__func__", None) is not getattr(Callback, hook)


def listens_to_steps(callback: Callback, hook: str) -> bool:
    """Whether the Trainer ever calls `hook`, a hook of steps."""
    return callback.every is not None and overrides_hook(callback, hook)


def _at_cadence(hook: str, callbacks: list[Callback]) -> list[tuple[Callback, int]]:
    heard = [c for c in callbacks if listens_to_steps(c, hook)]
    return [(c, index(cast("int", c.every))) for c in heard]


def _those_with(hook: str, callbacks: list[Callback]) -> list[Callback]:
    return [callback for callback in callbacks if overrides_hook(callback, hook)]
