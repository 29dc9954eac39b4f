"""Base of the suites: kinds of checks, their dependencies, and unsupported features."""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar, cast

import jax
import pytest

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., None])

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    with contextlib.suppress(RuntimeError, AttributeError):  # JAX has started, or is too old
        config: Any = jax.config
        if config.jax_num_cpu_devices < 2:
            config.update("jax_num_cpu_devices", 2)


def feature(name: str) -> Callable[[_F], _F]:
    """Marks a check of a feature; the feature's name in `unsupported` declares all its checks."""

    def mark(check: _F) -> _F:
        check.tier = name  # pyright: ignore[reportFunctionMemberAccess]
        return check

    return mark


optional = feature("optional")
"""Marks a check that may be declared in `unsupported` by its name."""


def rests_on(*names: str) -> Callable[[_F], _F]:
    """Marks a check that is skipped if one of these checks fails, as it would fail for that."""

    def mark(check: _F) -> _F:
        @functools.wraps(check)
        def resting(self: "Conformance") -> None:
            self.need(*names)
            check(self)

        return cast("_F", resting)

    return mark


class Conformance:
    """The base class of the suites; pytest collects subclasses of a suite named `Test...`.

    Attributes:
        unsupported: features or optional checks that the framework does not support, each with the
            reason. A declared check must fail, so that a declaration cannot become outdated.
    """

    unsupported: ClassVar[Mapping[str, str]] = {}
    _suite: ClassVar[type["Conformance"]]
    _unsupported: ClassVar[Mapping[str, str]] = {}
    _declared: ClassVar[Mapping[str, str]] = {}
    _known: ClassVar[dict[str, bool]] = {}
    _shared: ClassVar[dict[Any, Any]] = {}

    def __init_subclass__(cls, *, is_suite: bool = False, **options: object) -> None:
        super().__init_subclass__(**options)
        if is_suite:
            cls._suite = cls
            for _, check in _own_checks(cls):
                check._of_the_suite = True  # pyright: ignore[reportFunctionMemberAccess]
            return
        _refuse_overrides(cls, cls._suite)
        tiers = {name: getattr(check, "tier", "basic") for name, check in _checks(cls._suite)}
        _refuse_lacks(cls, tiers)
        reasons = {
            name: cls.unsupported.get(name) or cls.unsupported.get(tiers[name]) for name in tiers
        }
        # A copy, because a later change would be neither enforced nor printed.
        cls._unsupported = dict(cls.unsupported)
        cls._declared = {name: reason for name, reason in reasons.items() if reason}
        cls._known, cls._shared = {}, {}
        for name, check in _checks(cls._suite):
            setattr(cls, name, _recorded(check, tiers[name], cls._declared.get(name)))

    def holds(self, name: str) -> bool:
        """Whether a check passes; it runs if it has not run yet."""
        if name not in self._known:
            with contextlib.suppress(Exception, pytest.skip.Exception, pytest.fail.Exception):
                getattr(self, name)()
        return self._known[name]

    def _once(self, name: object, make: Callable[[], _T]) -> _T:
        """The result of `make`, made once for all checks."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def need(self, *names: str) -> None:
        """Skips the calling check unless these checks pass."""
        for name in names:
            if not self.holds(name):
                pytest.skip(f"it rests on {name}, which fails")

    @pytest.fixture(autouse=True)
    def _usual_promotion(self) -> Iterator[None]:
        """JAX's default promotion: frameworks may rely on it, whatever the user's settings."""
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield

    @pytest.fixture(autouse=True)
    def _tell(self, request: pytest.FixtureRequest) -> None:
        """Adds a summary of the suite to the end of pytest's report."""
        manager = request.config.pluginmanager
        summary = manager.get_plugin(_Summary.NAME)
        if summary is None:
            summary = _Summary()
            manager.register(summary, _Summary.NAME)
        summary.suites[type(self).__name__] = self._unsupported


def _refuse_overrides(cls: type[Conformance], suite: type[Conformance]) -> None:
    below = cls.__mro__[: cls.__mro__.index(suite)]  # a mixin may override a check too
    for name, check in _checks(suite):
        if any(not hasattr(vars(c).get(name, check), "_of_the_suite") for c in below):
            raise TypeError(
                f"{cls.__name__} overrides the check {name}. If the framework cannot do it, "
                f'write `unsupported = {{"{name}": "why"}}` instead, where the check is optional'
            )


def _refuse_lacks(cls: type[Conformance], tiers: Mapping[str, str]) -> None:
    """Raises a TypeError for an unsupported name that is unknown or required, or has no reason."""
    may_lack = {tier for tier in tiers.values() if tier not in ("basic", "optional")}
    may_lack |= {name for name, tier in tiers.items() if tier != "basic"}
    for name, reason in cls.unsupported.items():
        if name not in may_lack:
            why = "which every adapter must pass" if name in tiers else "which is not a check"
            raise TypeError(
                f"{cls.__name__}.unsupported names {name!r}, {why}. Allowed names: "
                f"{', '.join(sorted(may_lack))}"
            )
        if not reason:
            raise TypeError(f"{cls.__name__}.unsupported[{name!r}] must say why")


class _Summary:
    """A pytest plugin that reports the number of checks and the unsupported features."""

    NAME = "solstice-conformance"

    def __init__(self) -> None:
        self.suites: dict[str, Mapping[str, str]] = {}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("solstice conformance")
        for name, unsupported in self.suites.items():
            counts = {
                outcome: sum(
                    f"::{name}::" in r.nodeid for r in terminalreporter.getreports(outcome)
                )
                for outcome in ("passed", "failed", "xfailed", "skipped")
            }
            total = f"{sum(counts.values())} checks"
            each = [f"{count} {outcome}" for outcome, count in counts.items() if count]
            terminalreporter.line(f"{name}: {', '.join([total, *each])}")
            for lack, reason in unsupported.items():
                terminalreporter.line(f"  unsupported {lack}: {reason}")


def _own_checks(cls: type) -> Iterator[tuple[str, Callable[..., None]]]:
    return ((name, check) for name, check in vars(cls).items() if name.startswith("test_"))


def _checks(suite: type) -> Iterator[tuple[str, Callable[..., None]]]:
    """The checks of a suite and of its base classes, in their order."""
    return itertools.chain.from_iterable(map(_own_checks, reversed(suite.__mro__)))


def _recorded(check: Callable[..., None], tier: str, reason: str | None) -> Callable[..., None]:
    """The check; it records whether it passes, for the checks that rest on it.

    With a `reason` it is declared unsupported, and must fail. If it may be declared, its error
    shows the line to write.
    """
    name = check.__name__
    line = f'unsupported = {{"{name if tier == "optional" else tier}": "why"}}'

    @functools.wraps(check)
    def recorded(self: Any) -> None:
        self._known[name] = False
        try:
            check(self)
        except (Exception, pytest.skip.Exception) as error:
            if reason:
                pytest.xfail(reason)
            if tier != "basic" and isinstance(error, Exception):
                error.add_note(f"If the framework cannot do it: {line}")
            raise
        if reason:
            pytest.fail(f"it is declared unsupported ({reason!r}), but works: remove it")
        self._known[name] = True

    return recorded
