"""Programs: functions of arrays as StableHLO, lowered by `jax.export` for each platform."""

import importlib
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
    """A program for each platform, as bytes, and its types."""

    contents: dict[str, bytes]
    program: Program


def lower(
    name: str,
    function: Callable[..., Any],
    platforms: Sequence[str],
    takes: Types,
    *arguments: Any,
) -> Lowered:
    """A function as a program.

    Each platform has its own, because one program for several is lowered otherwise, and XLA may
    round it otherwise than the steps of a Trainer.

    Args:
        name: the name of the function for messages.
        function: a function of dicts of arrays.
        platforms: the platforms, such as "cpu".
        takes: the types of the arrays that it takes beside the state, for the manifest.
        arguments: the types of its arguments.

    Raises:
        ExportError: JAX cannot lower it, or cannot write it.
    """
    jitted = jax.jit(function)
    found = {platform: _exported(name, jitted, arguments, platform) for platform in platforms}
    # A step returns the state too.
    first = next(iter(found.values()))
    avals = _tree.unflatten(first.out_tree, first.out_avals)
    results: Any = cast("tuple[Any, ...]", avals)[-1] if isinstance(avals, tuple) else avals
    contents = {platform: bytes(each.serialize()) for platform, each in found.items()}
    return Lowered(contents, Program(specs_of(takes), specs_of(results)))


def _exported(name: str, jitted: Any, arguments: tuple[Any, ...], platform: str) -> Any:
    try:
        with _without_paths():
            found: Any = jax_export.export(jitted, platforms=[platform])(*arguments)
            found.serialize()  # which fails for a step that calls Python
    except ImportError:
        raise
    except Exception as error:  # JAX has one for each reason
        raise ExportError(
            f"{name} cannot be exported for {platform}: {_first_line(error)}. A step that calls "
            f"Python while it runs, as by `jax.debug.print` or `jax.pure_callback`, cannot leave "
            f"its process. If only this platform has no such operation, give the others as "
            f"`platforms=`"
        ) from error
    if found.nr_devices != 1:
        raise ExportError(
            f"{name} is bound to a mesh of {found.nr_devices} devices, and an exported step runs "
            f"on one: leave out the constraints of sharding in it"
        )
    return found


def specs_of(types: Any) -> dict[str, Spec]:
    """The types of arrays by path, or of one array."""
    leaves = {"": types} if hasattr(types, "shape") else types
    return {name: spec_of(x) for name, x in leaves.items()}


def spec_of(x: Any) -> Spec:
    """The type of an array."""
    return Spec(x.dtype.name, [axis if isinstance(axis, int) else str(axis) for axis in x.shape])


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


def check_flatbuffers() -> None:
    """Raises an ImportError with the line to write if flatbuffers, which JAX needs, is missing."""
    try:
        importlib.import_module("flatbuffers")
    except ImportError as error:
        raise ImportError(
            'exported runs need flatbuffers: `pip install "./packages/solstice-core[export]"`'
        ) from error
