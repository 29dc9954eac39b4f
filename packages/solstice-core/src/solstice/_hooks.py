"""Checks of the hooks of a callback, since the Trainer would never call a misspelt one."""

import difflib
import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any, cast
from weakref import WeakKeyDictionary

from solstice._console import warn

_MODES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "validate": "val",
    "eval": "val",
    "evaluation": "val",
    "evaluate": "val",
    "test": "test",
    "testing": "test",
    "predict": "predict",
    "prediction": "predict",
}
_UNITS = {
    **dict.fromkeys(["epoch", "epochs"], "epoch"),
    **dict.fromkeys(["step", "steps", "batch", "batches", "iteration"], "step"),
    **dict.fromkeys(["fit", "run"], "fit"),
}
_EDGES = {
    **dict.fromkeys(["start", "starts", "started", "begin", "begins", "before"], "start"),
    **dict.fromkeys(["end", "ends", "ended", "finish", "finished", "after"], "end"),
}
_ELSEWHERE = {
    "on_evaluate": ("on_epoch_end", "val"),
    "on_save_checkpoint": ("state_dict", None),
    "on_load_checkpoint": ("load_state_dict", None),
    "on_init_end": ("on_fit_start", None),
    "on_log": ("on_epoch_end", None),
    "on_error": ("on_exception", None),
    "on_keyboard_interrupt": ("on_exception", None),
}
"""Hooks of other libraries whose names do not follow from `_MODES`, `_UNITS` and `_EDGES`."""

_ALIKE = 0.85

_checked: WeakKeyDictionary[type, set[frozenset[str]]] = WeakKeyDictionary()
"""Checked classes, with the attributes of their objects: a cache, as each run checks again."""


def check_hooks(callback: object, base: type[Any]) -> None:
    """Refuses a callback with a hook that the Trainer would not or could not call.

    Args:
        callback: the callback.
        base: `solstice.Callback`, whose methods are the hooks.

    Raises:
        TypeError: a method starts with "on_" and is not a hook, or a hook takes other arguments.
    """
    kind, names = type(callback), frozenset(vars(callback))
    if names in _checked.get(kind, ()):
        return
    _check_abstract(kind, base)
    for name in _strangers(callback, base):
        _check_name(callback, base, name)
    for hook in _hooks(base):
        method = getattr(callback, hook)
        if getattr(method, "__func__", None) is not getattr(base, hook):
            _check_method(callback, base, hook, method)
    _checked.setdefault(kind, set()).add(names)


def _check_abstract(kind: type[Any], base: type[Any]) -> None:
    """Refuses a callback without an abstract method, such as a `Logger` without `write`."""
    for name in dir(kind):
        method = inspect.getattr_static(kind, name, None)
        if getattr(method, "__isabstractmethod__", False):
            wrong = difflib.get_close_matches(name, set(dir(kind)) - set(dir(base)) - {name}, 1)
            instead = f" It has `{wrong[0]}`" if wrong and wrong[0] in vars(kind) else ""
            raise TypeError(
                f"{kind.__name__} does not define `{name}`: write "
                f"`{_line(kind, name)}` in it.{instead}"
            )


@cache
def _hooks(base: type[Any]) -> tuple[str, ...]:
    """The names of the hooks: the public methods of the base class."""
    return tuple(n for n, value in _public(base).items() if inspect.isfunction(value))


def _public(owner: object) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if not name.startswith("_")}


def _strangers(callback: object, base: type[Any]) -> Iterator[str]:
    """Public names of a callback that the base class does not have."""
    owners = [callback, *_between(callback, base)]
    names = dict.fromkeys(name for owner in owners for name in _public(owner))
    return (name for name in names if not hasattr(base, name))


def _between(callback: object, base: type[Any]) -> list[type]:
    """The classes of a callback below the base class, which a user may have written."""
    return [kind for kind in type(callback).__mro__ if kind not in base.__mro__]


def _check_name(callback: object, base: type[Any], name: str) -> None:
    if not _is_method(inspect.getattr_static(callback, name)):  # runs no property of the user
        _check_setting(callback, base, name)
        return
    hook, mode = _meant(name, base)
    message = _unknown(type(callback).__name__, base, name, hook, mode)
    own = [kind for kind in _between(callback, base) if issubclass(kind, base)]
    if name.startswith("on_") and any(name in vars(kind) for kind in own):
        raise TypeError(message)
    if hook is not None:  # perhaps a hook of what else it is, or a method that the user calls
        warn(message, stacklevel=4)


def _check_setting(callback: object, base: type[Any], name: str) -> None:
    """Warns of an attribute like `evry = 100`, which would have no effect and no error."""
    if name == "mode" and not _names_modes(getattr(type(callback), name, None)):
        return  # such as the direction of a `monitor`
    settings = [setting for setting in _public(base) if setting not in _hooks(base)]
    for close in difflib.get_close_matches(name, settings, 1, _ALIKE):
        warn(
            f"{type(callback).__name__}.{name} is not an attribute of solstice.Callback, and the "
            f"Trainer does not read it: write `{close}`. An attribute for your own code needs "
            f"another name, such as `_{name}`",
            stacklevel=5,
        )


def _names_modes(value: object) -> bool:
    """Whether a `mode` means `modes`, such as "train" or ("val", "test")."""
    names = cast("Any", value) if isinstance(value, tuple | list) else (value,)
    return any(isinstance(name, str) and name in _MODES for name in names)


def _is_method(value: object) -> bool:
    return callable(value) or isinstance(value, staticmethod | classmethod)


def _unknown(kind: str, base: type[Any], name: str, hook: str | None, mode: str | None) -> str:
    if hook is None:
        instead = f"The hooks are {', '.join(h for h in _hooks(base) if h.startswith('on_'))}"
    else:
        instead = f"Write `{_line(base, hook)}`"
        instead += f', with `if record.mode == "{mode}":` in it' if mode else ""
    return (
        f"{kind}.{name} is not a hook of solstice.Callback and would never be called. {instead}. "
        f"A method for your own code needs another name, such as `_{name}`"
    )


def _meant(name: str, base: type[Any]) -> tuple[str | None, str | None]:
    """The hook that a name most likely means, and its mode; None if there is none."""
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    is_hook = name.startswith("on_")
    found = _by_words(name.removeprefix("on_").split("_"), is_hook=is_hook)
    if found is not None:
        return found
    close = difflib.get_close_matches(name, _hooks(base), 1, 0.75 if is_hook else _ALIKE)
    return (close[0] if close else None), None


def _by_words(words: list[str], *, is_hook: bool) -> tuple[str, str | None] | None:
    """The hook by the words in a name: `on_validation_batch_end` is `on_step_end` in "val"."""
    kinds = [_MODES, _UNITS, _EDGES]
    mode, unit, edge = (next((kind[w] for w in words if w in kind), None) for kind in kinds)
    known = all(any(word in kind for kind in kinds) for word in words)
    if not known or not (edge or (is_hook and unit)) or not (is_hook or unit):
        return None
    whole = "fit" if mode in (None, "train") else "epoch"
    return f"on_{unit or whole}_{edge or 'end'}", mode


def _check_method(callback: object, base: type[Any], hook: str, method: object) -> None:
    """Refuses a hook that is not a method, is asynchronous, or takes other arguments."""
    name = f"{type(callback).__name__}.{hook}"
    if not callable(method):
        raise TypeError(f"{name} must be a method, `{_line(base, hook)}`; it is {method!r:.60}")
    asynchronous = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
    if asynchronous or inspect.isgeneratorfunction(method):
        does = "is `async`" if asynchronous else "has a `yield`"
        raise TypeError(f"{name} {does}, so it would never run: write `{_line(base, hook)}`")
    given = list(inspect.signature(getattr(base, hook)).parameters)[1:]
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    try:
        signature.bind(*given)
    except TypeError:
        raise TypeError(
            f"{name} must take {_words(given)}: write `{_line(base, hook)}`; it takes {signature}"
        ) from None


def _words(given: list[str]) -> str:
    return " and ".join(given) if given else "nothing but self"


def _line(base: type[Any], hook: str) -> str:
    """The first line of a hook's definition: `def on_step_end(self, record):`."""
    return f"def {hook}({', '.join(inspect.signature(getattr(base, hook)).parameters)}):"
