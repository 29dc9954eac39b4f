"""StepDigest: a digest of the computation of a step, the same in every process.

It covers the jaxpr of the step and its constants. So it changes with a learning rate, a schedule, a
loss, a closure or an edited line, but not with a renamed function or a moved file.
"""

import dataclasses
import enum
import functools
import hashlib
import re
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal  # pyright: ignore[reportPrivateImportUsage]

from solstice import _tree

# A `repr` with an address would differ in every process.
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")

_PRINTS = ("debug_callback", "debug_print")  # added and removed between resumes
"""Operations that only print."""

_NO_NUMBERS = frozenset({
    *("name", "debug_info", "weak_type", "inline", "keep_unused", "donated_invars", "ctx_mesh"),
    *("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees", "num_consts"),
})  # fmt: skip
"""Parameters without an effect on numbers: names, compiler hints and rules of derivatives (a
derivative that the step uses is in the jaxpr itself)."""

_MOST_NUMBERS = 200
"""The most distinct constants to keep, for naming those that have changed."""


@dataclasses.dataclass(frozen=True)
class StepDigest:
    """The computation of a step, for comparison with another process.

    Attributes:
        digest: equal if the steps have the same operations on the same constants.
        operations: the count of each operation.
        numbers: the count of each scalar constant; empty if there are over 200.
    """

    digest: str
    operations: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])
    numbers: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])

    def changes(self, saved: "StepDigest") -> str:
        """The operations and numbers that differ from `saved`, in words."""
        found = [
            f"{kind} {', '.join(gone) or 'nothing'} became {', '.join(new) or 'nothing'}"
            for kind, gone, new in [
                ("the numbers", *_differing(saved.numbers, self.numbers)),
                ("the operations", *_differing(saved.operations, self.operations)),
            ]
            if gone or new
        ]
        return "; ".join(found) or "in its order, its shapes or the values of its arrays"


def digest_of_jaxpr(jaxpr: Any) -> StepDigest:
    """The digest of a traced step."""
    writer = _Writer()
    writer.value(jaxpr)
    numbers = dict(sorted(writer.numbers.items()))
    return StepDigest(
        writer.digest.hexdigest(),
        dict(sorted(writer.operations.items())),
        numbers if len(numbers) <= _MOST_NUMBERS else {},
    )


def digest_of_code(*values: Any) -> StepDigest:
    """The digest of a step that cannot be traced: of its code and closures."""
    writer = _Writer()
    for value in values:
        writer.value(value)
    return StepDigest(writer.digest.hexdigest())


def _differing(was: Mapping[str, int], now: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """The names that are more frequent in `was`, and those in `now`; a few of each."""
    gone, new = Counter(was) - Counter(now), Counter(now) - Counter(was)
    return _few(gone), _few(new)


def _few(names: Mapping[str, int], most: int = 4) -> list[str]:
    listed = [name if count == 1 else f"{count} x {name}" for name, count in names.items()]
    return [*listed[:most], *([f"{len(listed) - most} more"] if len(listed) > most else [])]


class _Writer:
    """Feeds values into a checksum, independent of addresses and of the order of sets."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.operations: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()
        self._within: list[int] = []

    def text(self, text: str) -> None:
        # With the length, else "ab", "c" and "a", "bc" would have the same digest.
        self.digest.update(f"{len(text)}:{text}".encode())

    def value(self, value: Any) -> None:
        """Writes any value."""
        if id(value) in self._within:  # a function that refers to itself
            return self.text("cycle")
        self._within.append(id(value))
        self._write(value)
        self._within.pop()
        return None

    def _write(self, value: Any) -> None:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            self.text(f"{type(value).__name__} {value!r}")
        elif isinstance(value, ClosedJaxpr | Jaxpr):
            self._jaxpr(value)
        elif isinstance(value, enum.Enum):
            self.text(str(value))
        elif isinstance(value, jax.Array | np.ndarray | np.generic) or hasattr(value, "__array__"):
            self._array(value)
        elif isinstance(value, set | frozenset):
            self.values("set", sorted(map(_in_words, cast("set[Any]", value))))
        elif isinstance(value, Mapping):
            items = cast("Mapping[Any, Any]", value).items()
            self.values("dict", sorted(items, key=lambda item: _in_words(item[0])))
        elif isinstance(value, tuple | list):
            self.values("sequence", cast("Sequence[Any]", value))
        else:
            self._object(value)

    def values(self, kind: str, values: Sequence[Any]) -> None:
        self.text(f"{kind} of {len(values)}")
        for value in values:
            self.value(value)

    def _object(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            self.values("partial", [value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self.values("method", [value.__func__, value.__self__])
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self.values("code", [value.co_code, value.co_names, value.co_consts])
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in dataclasses.fields(value)]
            self.values(type(value).__name__, [getattr(value, name, None) for name in names])
        else:
            self.text(_in_words(value))

    def _function(self, function: types.FunctionType) -> None:
        cells = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
        self.values("function", [function.__code__, function.__defaults__, cells])

    def _array(self, value: Any) -> None:
        if _tree.is_key(value):
            # NumPy cannot read typed keys.
            self.text(str(jax.random.key_impl(value)))
            value = jax.random.key_data(value)
        array = _tree.to_numpy(value)
        self.text(f"{array.dtype} {array.shape}")
        self.digest.update(np.ascontiguousarray(array).tobytes())

    def _jaxpr(self, jaxpr: Any) -> None:
        closed, inner = jaxpr, getattr(jaxpr, "jaxpr", jaxpr)
        names: dict[Any, int] = {}
        self.values("constants", list(getattr(closed, "consts", ())))
        for group in (inner.constvars, inner.invars):
            self._variables(group, names)
        for equation in inner.eqns:
            if equation.primitive.name not in _PRINTS:
                self._equation(equation, names)
        self._variables(inner.outvars, names)

    def _equation(self, equation: Any, names: dict[Any, int]) -> None:
        # Older versions of JAX call the operation "pjit".
        name = "jit" if equation.primitive.name == "pjit" else equation.primitive.name
        self.operations[name] += 1
        self.text(name)
        self._variables(equation.invars, names)
        for key, parameter in sorted(equation.params.items()):  # in a fixed order
            if key not in _NO_NUMBERS:
                self.text(key)
                self.value(parameter)
        self._variables(equation.outvars, names)

    def _variables(self, variables: Sequence[Any], names: dict[Any, int]) -> None:
        for variable in variables:
            if isinstance(variable, Literal):
                self._literal(variable)
            else:
                # A number by first use, because a variable has no name that lasts.
                number = names.setdefault(variable, len(names))
                aval = variable.aval
                shape = getattr(aval, "shape", None)
                self.text(f"{number} {getattr(aval, 'dtype', aval)} {shape}")

    def _literal(self, literal: Any) -> None:
        array = _tree.to_numpy(literal.val)
        if array.ndim == 0:
            # 7 digits: more would show 0.1 of float32 as 0.100000001.
            self.numbers[f"{array.item():.7g}" if array.dtype.kind == "f" else str(array)] += 1
        self.text(str(getattr(literal.aval, "dtype", "")))
        self.value(literal.val)


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018, which raises if it is empty
    except ValueError:  # of a variable that has no value yet
        return True
    return False


def _in_words(value: Any) -> str:
    return _ADDRESS.sub("0x", f"{type(value).__qualname__} {value!r}")
