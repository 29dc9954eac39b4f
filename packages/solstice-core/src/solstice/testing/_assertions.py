"""Assertions about trees and calls, with messages that name the mistake."""

# The trees here have leaves of any type, so pyright cannot check them.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

import inspect
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solstice import _tree
from solstice._stored import from_stored, to_stored

_T = TypeVar("_T")

_READS_ON_THE_HOST = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def equal(one: object, other: object, what: str, atol: float = 0.0) -> None:
    """Asserts that two trees are equal, in structure, shapes, dtypes and values."""
    same_types(one, other, what)
    for (path, a), b in zip(_tree.leaves_by_path(one), _tree.leaves(other), strict=True):
        x, y = _plain(a), _plain(b)
        assert _close(x, y, atol), f"{what}: the values{_at(path)} differ:\n{x}\n{y}"


def same_types(one: object, other: object, what: str) -> None:
    """Asserts that two trees have the same structure, and leaves of the same shapes and dtypes."""
    first, second = _tree.structure(one), _tree.structure(other)
    assert first == second, f"{what}: the structure was\n  {first}\nand is\n  {second}"
    for (path, a), b in zip(_tree.leaves_by_path(one), _tree.leaves(other), strict=True):
        was, now = _type(a), _type(b)
        assert was == now, f"{what}: `{path}` was {was} and is {now}"


def differ(one: object, other: object) -> bool:
    """Whether any value of two trees of the same structure differs."""
    pairs = zip(_tree.leaves(one), _tree.leaves(other), strict=True)
    return any(not np.array_equal(_plain(a), _plain(b)) for a, b in pairs)


def snapshot(tree: _T) -> _T:
    """A copy of the tree in NumPy arrays, which later changes in place do not affect."""
    return _tree.map(lambda leaf: np.array(_plain(leaf)), tree)


@contextmanager
def left_alone(function: str, **arguments: object) -> Generator[None, None, None]:
    """Asserts that the code inside the block does not change these arguments in place."""
    before = {name: snapshot(argument) for name, argument in arguments.items()}
    yield
    for name, argument in arguments.items():
        what = f"{function} leaves its arguments alone: it changed `{name}` in place"
        equal(before[name], snapshot(argument), what)


def all_arrays(tree: object, what: str) -> None:
    """Asserts that all leaves are arrays other than PRNG keys."""
    for path, leaf in _tree.leaves_by_path(tree):
        is_array = isinstance(leaf, jax.Array | np.ndarray)
        assert is_array, (
            f"{what}: `{path}` is not an array but {leaf!r:.60} ({type(leaf).__name__})"
        )
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        assert not is_key, f"{what}: `{path}` is a PRNG key"


def single_precision(tree: object, what: str) -> None:
    """Asserts that every floating-point leaf is float32, NumPy arrays too."""
    for path, leaf in _tree.leaves_by_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == jnp.float32, f"{what} {leaf.dtype}{_at(path)}"


def takes(function: object, call: str, *arguments: object, **named: object) -> None:
    """Asserts that a function's signature accepts these arguments, if it has a signature."""
    assert callable(function), f"protocol: there is no method for `{call}`"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables have no signature
        return
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        raise AssertionError(
            f"protocol: it is called as `{call}`, and its signature is {signature}: {error}"
        ) from error


def is_pair(result: object, call: str, names: str) -> None:
    """Asserts that the result of a call is a tuple of two."""
    found = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
    right = isinstance(result, tuple) and len(result) == 2
    assert right, f"`{call}` must return the pair `{names}`; it returned {found}"


@contextmanager
def traced(what: str) -> Generator[None, None, None]:
    """Turns a tracing error of JAX into a message about the mistake in the adapter."""
    try:
        yield
    except _READS_ON_THE_HOST as error:
        raise AssertionError(
            f"{what} reads values on the host (`np.asarray`, `float`, `.item()`, or `if` on an "
            f"array), where under `jax.jit` there are none; compute with `jax.numpy` and "
            f"`jax.lax`. JAX says: {_first_line(error)}"
        ) from error
    except jax.errors.UnexpectedTracerError as error:
        raise AssertionError(
            f"{what} remembers a traced array from one call to the next, in the adapter or in a "
            f"global (such as a PRNG key that is split in place); return it in the state. JAX "
            f"says: {_first_line(error)}"
        ) from error


def is_static(adapter: object) -> None:
    """Asserts that an adapter has no leaves and has a hash."""
    leaves = jax.tree.leaves(adapter)
    hint = "decorate its class with `@jax.tree_util.register_static` and `@dataclass(eq=False)`"
    assert not leaves, f"static: the adapter has the leaves {leaves!r:.80}; {hint}"
    try:
        hash(adapter)
    except TypeError as error:
        raise AssertionError(f"static: the adapter has no hash ({error}); {hint}") from error


def through_a_checkpoint(tree: object, like: _T) -> _T:
    """The tree after it is saved and loaded by path into the structure of `like`."""
    leaves = _tree.leaves_by_path(tree)
    saved = {path: to_stored(path, leaf) for path, leaf in leaves}
    assert len(saved) == len(leaves), "checkpoint: two leaves have one path"
    restored = [from_stored(saved[path], leaf) for path, leaf in _tree.leaves_by_path(like)]
    return jax.tree.unflatten(_tree.structure(like), restored)


def two_devices() -> jax.sharding.NamedSharding:
    """A sharding of axis 0 over two devices; skips the test if there is only one."""
    if jax.device_count() < 2:
        pytest.skip("there is one device; set XLA_FLAGS=--xla_force_host_platform_device_count=2")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))


def double_precision() -> AbstractContextManager[None]:
    """The context of `jax_enable_x64`, in which an accidental float64 is not narrowed."""
    # Older versions have it in `jax.experimental` only.
    place = "jax" if hasattr(jax, "enable_x64") else "jax.experimental"
    enable: Callable[..., AbstractContextManager[None]] = import_module(place).enable_x64
    return enable(True)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _at(path: str) -> str:
    return f" at `{path}`" if path else ""


def _close(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], atol: float) -> bool:
    if one.dtype == object or other.dtype == object:
        return bool(np.all(one == other))
    return np.allclose(one, other, rtol=atol, atol=atol, equal_nan=True)


def _type(leaf: Any) -> str:
    if not hasattr(leaf, "dtype"):
        return f"a Python {type(leaf).__name__}"
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    weak = ", weakly typed" if getattr(leaf, "weak_type", False) else ""
    return f"{dtype}{list(leaf.shape)}{weak}"


def _plain(leaf: object) -> np.ndarray[Any, Any]:
    if not _tree.is_array(leaf):
        return np.asarray(leaf)
    if _tree.is_key(leaf):
        return np.asarray(jax.random.key_data(leaf))
    values = np.asarray(leaf)
    is_half = values.dtype.kind == "V" or values.dtype.itemsize == 2
    return values.astype(np.float32) if is_half else values
