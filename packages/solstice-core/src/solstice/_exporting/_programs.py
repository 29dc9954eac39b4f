"""Programs: functions of arrays as StableHLO, lowered for several platforms by `jax.export`."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import jax
from jax import ShapeDtypeStruct
from jax import export as jax_export

from solstice import _tree
from solstice._engine import Types
from solstice._errors import ExportError
from solstice._exporting._archive import Program, Spec

ANY_LENGTH = "n"
"""The name of an axis 0 of any length."""

_NO_PATHS = {
    "jax_traceback_in_locations_limit": 0,
    "jax_hlo_source_file_canonicalization_regex": ".*",
}
"""Settings of JAX with which a program names no file and no line of the code that made it."""


@dataclass(frozen=True)
class Lowered:
    """A program as bytes, and its types."""

    content: bytes
    program: Program


def lower(
    name: str,
    function: Callable[..., Any],
    platforms: Sequence[str],
    takes: Types,
    *before: Types,
) -> Lowered:
    """A function as a program.

    Args:
        name: the name of the function for messages.
        function: a function of dicts of arrays.
        platforms: the platforms, such as "cpu".
        takes: the types of its last argument. The only array of it is given without its path.
        before: those of the arguments before it.

    Raises:
        ExportError: JAX cannot lower it, or cannot write it.
    """
    try:
        with _without_paths():
            export: Any = jax_export.export(jax.jit(function), platforms=platforms)
            found = export(*before, only(takes) if before else takes)
            content = bytes(found.serialize())
    except ImportError:
        raise
    except Exception as error:  # JAX has one for each reason
        raise ExportError(
            f"{name} cannot be exported for {', '.join(platforms)}: {_first_line(error)}. A step "
            f"that calls Python while it runs, as by `jax.debug.print` or `jax.pure_callback`, "
            f"cannot leave its process. If one platform has no such operation, give the others: "
            f'`platforms=["{jax.default_backend()}"]`'
        ) from error
    if found.nr_devices != 1:
        raise ExportError(
            f"{name} is bound to a mesh of {found.nr_devices} devices, and an exported step runs "
            f"on one: leave out the constraints of sharding in it"
        )
    # A step returns the state too.
    avals = _tree.unflatten(found.out_tree, found.out_avals)
    returned = avals[-1] if isinstance(avals, tuple) else avals
    return Lowered(content, Program(specs_of(takes), specs_of(returned)))


def specs_of(types: Any) -> dict[str, Spec]:
    """The types of arrays by path, or of one array."""
    leaves = {"": types} if hasattr(types, "shape") else types
    return {
        name: Spec(x.dtype.name, [d if isinstance(d, int) else str(d) for d in x.shape])
        for name, x in leaves.items()
    }


def of_any_length(types: Types, rows: int) -> Types:
    """The types with an axis 0 of any length, where it is the number of examples."""
    (length,) = cast("Any", jax_export).symbolic_shape(ANY_LENGTH)
    return {
        name: ShapeDtypeStruct((length, *x.shape[1:]), x.dtype) if x.shape[:1] == (rows,) else x
        for name, x in types.items()
    }


def only(arrays: Mapping[str, Any]) -> Any:
    """The arrays, or the array if there is one."""
    return next(iter(arrays.values())) if len(arrays) == 1 else dict(arrays)


def named(given: Any, types: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `only`."""
    return dict.fromkeys(types, given) if len(types) == 1 else given


def bare(arrays: Mapping[str, Any]) -> Any:
    """The arrays by path, or the array if the tree is an array."""
    return arrays[""] if [*arrays] == [""] else dict(arrays)


@contextmanager
def _without_paths() -> Generator[None, None, None]:
    before = {name: getattr(jax.config, name) for name in _NO_PATHS}
    try:
        for name, value in _NO_PATHS.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
