"""What the suites share: checks, tiers, and what a framework declares that it lacks."""

# Trees of anything go through here: what a checker can tell of them is not worth its words.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solstice import _tree

_F = TypeVar("_F", bound=Callable[..., None])

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    with contextlib.suppress(RuntimeError, AttributeError):  # JAX has started, or is too old
        config: Any = jax.config
        if config.jax_num_cpu_devices < 2:
            config.update("jax_num_cpu_devices", 2)


def optional(check: _F) -> _F:
    """Marks a check that a framework may declare that it lacks, by the check's name."""
    check.tier = "optional"  # pyright: ignore[reportFunctionMemberAccess]
    return check


def feature(name: str) -> Callable[[_F], _F]:
    """Marks a check of a feature, all of whose checks may be declared lacking at once."""

    def mark(check: _F) -> _F:
        check.tier = name  # pyright: ignore[reportFunctionMemberAccess]
        return check

    return mark


def rests_on(*names: str) -> Callable[[_F], _F]:
    """Marks a check that says nothing where one of these checks fails: it is skipped then."""

    def mark(check: _F) -> _F:
        @functools.wraps(check)
        def resting(self: Any) -> None:
            self.need(*names)
            check(self)

        return cast("_F", resting)

    return mark


class Conformance:
    """The base of the suites: a subclass of a suite, named `Test...`, is collected by pytest.

    Attributes:
        lacks: what the framework cannot do, and why: names of features or of optional checks. A
            check that is declared so must fail, since a lack that is none is not to be declared.
    """

    lacks: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if Conformance in cls.__bases__:  # a suite itself
            for _, check in _checks(cls):
                check._of_the_suite = True  # pyright: ignore[reportFunctionMemberAccess]
            return
        suite = next(base for base in cls.__mro__ if Conformance in base.__bases__)
        below = cls.__mro__[: cls.__mro__.index(suite)]  # a mixin could override a check too
        for name, check in _checks(suite):
            if any(not hasattr(vars(c).get(name, check), "_of_the_suite") for c in below):
                raise TypeError(
                    f"{cls.__name__} overrides the check {name}. If the framework cannot do it, "
                    f'write `lacks = {{"{name}": "why"}}` instead, where the check is optional'
                )
        tiers = {name: getattr(check, "tier", "basic") for name, check in _checks(suite)}
        may_lack = {tier for tier in tiers.values() if tier not in ("basic", "optional")}
        may_lack |= {name for name, tier in tiers.items() if tier != "basic"}
        for name, reason in cls.lacks.items():
            if name not in may_lack:
                raise TypeError(
                    f"{cls.__name__}.lacks names {name!r}, which every adapter must do. What may "
                    f"be lacking: {', '.join(sorted(may_lack))}"
                )
            if not reason:
                raise TypeError(f"{cls.__name__}.lacks[{name!r}] must say why")
        for name, check in _checks(suite):
            reason = cls.lacks.get(name) or cls.lacks.get(tiers[name])
            setattr(cls, name, _must_fail(check, reason) if reason else check)

    def holds(self, name: str) -> bool:
        """Whether a check passes; it is run once for that."""
        known = vars(type(self)).get("_known")
        if known is None:
            known = {}
            type(self)._known = known  # pyright: ignore[reportAttributeAccessIssue]
        if name not in known:
            try:
                getattr(self, name)()
                known[name] = True
            except (Exception, pytest.skip.Exception, pytest.fail.Exception):
                known[name] = False
        return known[name]

    def need(self, *names: str) -> None:
        """Skips the check that calls it, unless these checks pass."""
        for name in names:
            if not self.holds(name):
                pytest.skip(f"it rests on {name}, which fails")

    @pytest.fixture(autouse=True)
    def _usual_promotion(self) -> Iterator[None]:
        """JAX as it comes: how strictly a framework promotes is its own affair."""
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield

    @pytest.fixture(autouse=True)
    def _tell(self, request: pytest.FixtureRequest) -> None:
        """Has the run end with a line that says how many checks there were."""
        manager = request.config.pluginmanager
        summary: Any = manager.get_plugin(_Summary.NAME)
        if summary is None:
            summary = _Summary()
            manager.register(summary, _Summary.NAME)
        summary.suites[type(self).__name__] = self.lacks


class _Summary:
    """A plugin of pytest for this run: tells how many checks ran, and what is lacking."""

    NAME = "solstice-conformance"

    def __init__(self) -> None:
        self.suites: dict[str, Mapping[str, str]] = {}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("solstice conformance")
        for name, lacks in self.suites.items():
            counts = {
                outcome: sum(
                    f"::{name}::" in r.nodeid for r in terminalreporter.getreports(outcome)
                )
                for outcome in ("passed", "failed", "xfailed", "skipped")
            }
            told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
            terminalreporter.line(f"{name}: {sum(counts.values())} checks, {told}")
            for lack, reason in lacks.items():
                terminalreporter.line(f"  lacks {lack}: {reason}")


def _checks(suite: type) -> Iterator[tuple[str, Callable[..., None]]]:
    return ((name, check) for name, check in vars(suite).items() if name.startswith("test_"))


def _must_fail(check: Callable[..., None], reason: str) -> Callable[..., None]:
    @functools.wraps(check)
    def declared(self: Any) -> None:
        try:
            check(self)
        except (Exception, pytest.skip.Exception):
            pytest.xfail(reason)
        pytest.fail(f"it is declared to be lacking ({reason!r}), and it works: take it out")

    return declared


def equal(one: Any, other: Any, what: str, atol: float = 0.0) -> None:
    """Asserts that two trees are equal, in structure, shapes, dtypes and values."""
    same_types(one, other, what)
    for (path, a), b in zip(_tree.leaves_by_path(one), _tree.leaves(other), strict=True):
        close = np.allclose(_plain(a), _plain(b), rtol=atol, atol=atol, equal_nan=True)
        assert close, f"{what}: the values at `{path}` differ:\n{_plain(a)}\n{_plain(b)}"


def same_types(one: Any, other: Any, what: str) -> None:
    """Asserts that two trees have the same structure, and their leaves shapes and dtypes."""
    first, second = _tree.structure(one), _tree.structure(other)
    assert first == second, f"{what}: the structure was\n  {first}\nand is\n  {second}"
    for (path, a), b in zip(_tree.leaves_by_path(one), _tree.leaves(other), strict=True):
        was, now = _type(a), _type(b)
        assert was == now, f"{what}: `{path}` was {was} and is {now}"


def differ(one: Any, other: Any) -> bool:
    """Whether any value of two trees of the same structure differs."""
    pairs = zip(_tree.leaves(one), _tree.leaves(other), strict=True)
    return any(not np.array_equal(_plain(a), _plain(b)) for a, b in pairs)


def snapshot(tree: Any) -> Any:
    """A copy that does not follow what is done to the tree."""
    return _tree.map(lambda leaf: np.array(_plain(leaf)), tree)


def all_arrays(tree: Any, what: str) -> None:
    """Asserts that the leaves are arrays and no PRNG keys."""
    for path, leaf in _tree.leaves_by_path(tree):
        is_array = isinstance(leaf, jax.Array | np.ndarray)
        assert is_array, f"{what}: `{path}` is no array but {leaf!r:.60}"
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        assert not is_key, f"{what}: `{path}` is a PRNG key"


def is_static(adapter: Any) -> None:
    """Asserts that an adapter has no leaves, hashes, and equals itself."""
    leaves = jax.tree.leaves(adapter)
    hint = "decorate its class with `@jax.tree_util.register_static` and `@dataclass(eq=False)`"
    assert not leaves, f"static: the adapter has the leaves {leaves!r:.80}; {hint}"
    try:
        hash(adapter)
    except TypeError as error:
        raise AssertionError(f"static: the adapter has no hash ({error}); {hint}") from error


def through_numpy(tree: Any) -> Any:
    """The tree as a checkpoint gives it back: found by path, from memory of another kind."""
    saved = {path: np.array(leaf) for path, leaf in _tree.leaves_by_path(tree)}
    assert len(saved) == len(_tree.leaves(tree)), "checkpoint: two leaves have one path"
    restored = [jnp.asarray(saved[path]) for path, _ in _tree.leaves_by_path(tree)]
    return jax.tree.unflatten(_tree.structure(tree), restored)


def two_devices() -> Any:
    """A sharding of axis 0 over two devices; skips where there is one."""
    if jax.device_count() < 2:
        pytest.skip("there is one device; set XLA_FLAGS=--xla_force_host_platform_device_count=2")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))


def _type(leaf: Any) -> str:
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    weak = ", weakly typed" if getattr(leaf, "weak_type", False) else ""
    return f"{dtype}{list(leaf.shape)}{weak}"


def _plain(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf))
    values = np.asarray(leaf)
    return (
        values.astype(np.float32)
        if values.dtype.kind == "V" or values.dtype.itemsize == 2
        else values
    )
