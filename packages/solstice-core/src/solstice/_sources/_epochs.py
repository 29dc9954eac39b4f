"""Epochs: the batches of each epoch, and the ways to pass its number to a data set."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

from solstice._errors import DataError
from solstice._sources._libraries import is_keras

_SAMPLERS = ("sampler", "batch_sampler")
_PARTS = (*_SAMPLERS, "dataset")
"""Attributes of a torch `DataLoader` and of its parts, which may have a `set_epoch`."""

_DEPTH = 3
"""The most nested parts: `loader.batch_sampler.sampler`, and one more wrapper."""


class Epochs:
    """Makes the batches of each epoch: `epochs(3)` returns an iterable for epoch 3.

    Args:
        data: the user's data set.
        name: its argument, such as "train_ds", for messages.

    Attributes:
        decide: whether the batches depend only on the number of the epoch, so a resumed run need
            not read the earlier epochs.
        differ: whether something has received the number of an epoch, so the batches of two epochs
            may differ.

    Raises:
        DataError: `data` is a function that needs more arguments than the epoch.
    """

    def __init__(self, data: Any, name: str) -> None:
        self._data = data
        self._function: Callable[[int], Any] | None = None
        self._turns = _Turns(data)
        by_argument = False
        if not isinstance(data, Iterable) and callable(data):
            self._function, by_argument = _of_epoch(data, name)
        self.decide = by_argument or bool(_with_set_epoch(data, _SAMPLERS)) or is_keras(data)
        self.differ = self.decide or bool(_with_set_epoch(data, _PARTS))

    def __call__(self, number: int) -> Any:
        """An iterable, or another data set, with the batches of an epoch."""
        self._name(self._data, number)
        if self._function is None:
            return self._data
        made = self._function(number)
        if not self.decide:  # such as `lambda: loader`, whose sampler also needs the epoch
            self.differ = self._name(made, number) or self.differ
        return made

    def end(self, number: int) -> None:
        """Called when an epoch has been read to its end."""
        self._turns.end(number)

    def _name(self, data: object, number: int) -> bool:
        """Sets the epoch of a data set and its parts; returns whether any of them takes it."""
        # A loader does not pass the epoch on to its sampler, whose order would stay the same.
        parts = _with_set_epoch(data, _PARTS)
        for part in parts:
            part.set_epoch(number)
        if is_keras(data):
            # A function may make a new data set for each epoch, whose hooks start from epoch 0.
            self._turns = self._turns if self._turns.data is data else _Turns(data)
            self._turns.begin(number)
        return bool(parts) or is_keras(data)


class _Turns:
    """Calls the epoch hooks of a Keras data set, which may change its order in them.

    A run that starts with epoch 3 must have the same batches there as an uninterrupted one. So the
    hooks of the earlier epochs are called too, without reading these.
    """

    def __init__(self, data: object) -> None:
        self.data = data
        self._begun = self._ended = 0

    def begin(self, number: int) -> None:
        while self._begun <= number:
            self.end(self._begun - 1)
            self._call("on_epoch_begin")
            self._begun += 1

    def end(self, number: int) -> None:
        if number == self._ended < self._begun:
            self._call("on_epoch_end")
            self._ended += 1

    def _call(self, hook: str) -> None:
        if hasattr(self.data, hook):
            getattr(self.data, hook)()


def _with_set_epoch(data: Any, names: tuple[str, ...], depth: int = _DEPTH) -> list[Any]:
    """The data set and its parts, those with a `set_epoch`, each once."""
    if isinstance(data, type):  # a class that makes data sets is not one
        return []
    parts = [getattr(data, name, None) for name in names] if depth else []
    there = [part for part in parts if part is not None]
    inner = [found for part in there for found in _with_set_epoch(part, names, depth - 1)]
    own = [data] if callable(getattr(data, "set_epoch", None)) else []
    return list({id(part): part for part in [*own, *inner]}.values())


def _of_epoch(function: Callable[..., Any], name: str) -> tuple[Callable[[int], Any], bool]:
    """A function of the epoch's number, and whether the user's function takes the number."""
    parameters = _parameters(function)
    place = _place_of_epoch(function, parameters)
    others = [p.name for i, p in enumerate(parameters) if _is_required(p) and i != place]
    if others:
        raise DataError(_too_many(function, name, parameters, others))
    if place is None:
        return lambda number: function(), False
    epoch, before = parameters[place], [p.default for p in parameters[:place]]
    # By name if possible, so that parameters before it keep their own defaults.
    if epoch.kind is epoch.KEYWORD_ONLY or (before and epoch.kind is epoch.POSITIONAL_OR_KEYWORD):
        return lambda number: function(**{epoch.name: number}), True
    return lambda number: function(*before, number), True


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions in C have no signature
        return []
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _place_of_epoch(
    function: Callable[..., Any], parameters: list[inspect.Parameter]
) -> int | None:
    """The index of the parameter `epoch`, else of the only required one; None if there is none."""
    if isinstance(function, partial) and "epoch" in cast("partial[Any]", function).keywords:
        return None  # the user has set the epoch
    # Also with a default: `def batches(epoch=0)` would repeat epoch 0.
    named = [i for i, p in enumerate(parameters) if p.name == "epoch"]
    required = [i for i, p in enumerate(parameters) if _is_required(p)]
    alone = (
        len(required) == 1 and parameters[required[0]].kind is not inspect.Parameter.KEYWORD_ONLY
    )
    return named[0] if named else required[0] if alone else None


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty


def _too_many(
    function: Callable[..., Any], name: str, parameters: list[inspect.Parameter], others: list[str]
) -> str:
    called = getattr(function, "__name__", "f")
    called = called if called.isidentifier() else "f"
    needed = [p for p in parameters if _is_required(p) or p.name == "epoch"]
    values = ["epoch" if p.name == "epoch" else "..." for p in needed]
    by_name = ["" if p.kind is p.POSITIONAL_ONLY else f"{p.name}=" for p in needed]
    given = ", ".join(map("".join, zip(by_name, values, strict=True)))
    where = "" if "epoch" in values else ", with `epoch` in place of one `...`"
    return (
        f"{name} is a function that needs {' and '.join(f'`{other}`' for other in others)}, and "
        f"receives only the epoch's number, as a parameter named `epoch` or as the only one "
        f"without a default. Write `{name}=lambda epoch: {called}({given})`{where}"
    )
