"""Compilations: their count, their time, and the reason for each."""

import functools
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np

from solstice import _tree
from solstice._errors import CompileBudgetError
from solstice._record import Compilation

_COMPILED = "/jax/core/compile/backend_compile_duration"
_REMEMBERED = 16
"""Programs of one name to compare a new one with."""


_GONE = object()
"""Marks an object that no longer exists."""


class _Heard(threading.local):  # per thread, because another thread may compile meanwhile
    count = 0
    seconds = 0.0


_heard = _Heard()


def compiled_so_far() -> tuple[int, float]:
    """The number of programs that this thread has compiled, and the seconds of compilation."""
    _listen()
    return _heard.count, _heard.seconds


@functools.cache
def _listen() -> None:
    def hear(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            _heard.count += 1
            _heard.seconds += duration_secs

    # Once (`cache`): a second listener would count each program twice.
    jax.monitoring.register_event_duration_secs_listener(hear)


class Reasons:
    """Keeps the inputs of earlier programs, to explain a new compilation by the differences."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[dict[str, Kind]]] = {}

    def of(self, name: str, now: "dict[str, Kind]") -> tuple[str, ...]:
        """The differences of `now` from the most similar earlier inputs; adds `now` to these."""
        before = self._seen.setdefault(name, deque(maxlen=_REMEMBERED))
        # Newest first, because `min` takes the first of several that are equally similar.
        differences = [_differences(old, now) for old in reversed(before)]
        before.append(now)
        if not differences:
            return ()
        return tuple(min(differences, key=len)) or ("none of its inputs has changed",)


reasons = Reasons()


class Kind:
    """The part of a leaf on which a compiled program depends: the type of an array, or a value."""

    def __init__(self, leaf: object) -> None:
        self.is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        self.is_number = isinstance(leaf, bool | int | float | complex)
        self._value: Any = _array_text(leaf) if self.is_array else leaf
        self._ref: Any = None
        self._code, self._type = _code_of(leaf), type(leaf).__qualname__
        if not self.is_array and not isinstance(leaf, str | bytes | int | float | complex):
            with suppress(TypeError):  # weak, so that a large object is not kept alive
                self._ref, self._value = weakref.ref(leaf), None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Kind) or self.is_array != other.is_array:
            return False
        one, two = self._get(), other._get()
        return type(one) is type(two) and one is not _GONE and (one is two or _equal(one, two))

    @property
    def text(self) -> str:
        """The leaf as short text; computed on demand, because a `repr` may be slow."""
        if self.is_array:
            return self._value
        leaf = self._get()
        return self._code or (f"a {self._type}" if leaf is _GONE else _tree.text_of(leaf)[:60])

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def _get(self) -> Any:
        if self._ref is None:
            return self._value
        leaf = self._ref()
        return _GONE if leaf is None else leaf


def kinds_of(tree: object, name: str = "") -> dict[str, Kind]:
    """The `Kind` of each leaf and static field of a tree, by path."""
    found = {f"{name}{path}": Kind(leaf) for path, leaf in _tree.leaves_by_path(tree)}
    found.update({path: Kind(value) for path, value in _statics(tree, name)})
    return found


def _statics(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, eqx.Module) and is_dataclass(tree):
        for field in fields(tree):
            value, where = getattr(tree, field.name, None), f"{path}.{field.name}"
            if field.metadata.get("static", False):
                yield where, value
            else:
                yield from _statics(value, where)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _statics(value, f"{path}[{key!r}]")
    elif isinstance(tree, tuple | list):
        for index, value in enumerate(tree):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            yield from _statics(value, f"{path}[{index}]")
    elif tree is not None and not _tree.leaves(tree):
        yield path, tree  # a static node, such as an adapter of an optimiser


def _differences(old: dict[str, Kind], new: dict[str, Kind]) -> list[str]:
    paths = [p for p in {**old, **new} if p not in old or p not in new or old[p] != new[p]]
    return [_difference(path, old.get(path), new.get(path)) for path in paths]


def _difference(path: str, old: Kind | None, new: Kind | None) -> str:
    if old is None or new is None:
        return f"`{path}` is {'new' if old is None else 'no longer there'}"
    if old.is_number and new.is_number:
        return (
            f"`{path}` was {old.text} and is {new.text}: each value of a Python number compiles "
            f"another program; write `jnp.asarray({new.text})`"
        )
    if old.is_number and new.is_array:
        return (
            f"`{path}` was the Python number {old.text} and is {new.text}: start with an array, "
            f"`jnp.asarray({old.text}, ...)`"
        )
    if old.text == new.text:
        return (
            f"`{path}` is another object, though both are {new.text}: make it once, before the loop"
        )
    return f"`{path}` was {old.text} and is {new.text}"


def _array_text(leaf: Any) -> str:
    weak = ", weakly typed" if getattr(leaf, "weak_type", False) else ""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]{weak}"


def _code_of(leaf: Any) -> str | None:
    """The name and line of a function; None for other objects."""
    code = getattr(leaf, "__code__", None)
    if code is None:
        return None
    return f"{leaf.__qualname__} of line {code.co_firstlineno} of {code.co_filename}"


def _equal(one: object, two: object) -> bool:
    try:
        return bool(np.all(one == two)) or (one != one and two != two)
    except Exception:  # of a custom `__eq__`
        return False


def check_budget(compilations: Sequence[Compilation], most: int | None) -> None:
    """Raises a CompileBudgetError if there are more than `most`; None is no limit."""
    if most is not None and len(compilations) > most:
        listed = "".join(f"\n  {compilation}" for compilation in compilations)
        raise CompileBudgetError(
            f"{len(compilations)} programs were compiled, and max_compiles={most}:{listed}"
        )
