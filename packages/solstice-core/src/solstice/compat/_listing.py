"""List of adapters and their health."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions

from solstice.compat._claims import KNOWN, Claim, claims, cure, names_of
from solstice.compat._load import AdapterError, call, is_found, load, prefix_fault
from solstice.compat._registry import (
    all_claims,
    claims_of_prefix,
    is_spoken,
    missing,
    prefixes_of,
    the_only,
)


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter that is installed or registered in this process.

    Attributes:
        name: its class name, as in `solstice.compat.FlaxModel`; empty if it does not name a class.
        wraps: the import prefix of the wrapped types.
        kind: "model" or "optimizer"; "unknown" if Solstice does not read its group.
        where: the location of the class, such as "solstice_flax:FlaxModel".
        distribution: name and version of its package.
        protocol: its protocol version.
        health: "ok", or the problem and how to fix it.
        is_broken: whether there is a problem.
    """

    name: str
    wraps: str
    kind: str
    where: str
    distribution: str
    protocol: int
    health: str
    is_broken: bool = False

    def __str__(self) -> str:
        is_known = self.kind != "unknown"
        group = f"{self.kind}s, protocol v{self.protocol}" if is_known else "unknown group"
        return (
            f"{self.name or '?'} wraps {self.wraps or '?'} ({group}), {self.distribution}: "
            f"{self.health}"
        )


def adapters() -> list[AdapterInfo]:
    """`solstice.compat.adapters()`: list the available adapters and check whether they work.

    The check imports each adapter and its framework. An error in the import or in the entry point
    becomes its `health`. An import that hangs, or ends the process, does so here too.
    """
    return [examine(claim) for claim in in_order()]


def list_adapters(write: Callable[[str], object]) -> int:
    """Writes a line for each adapter. Returns an exit code: 1 if one is broken."""
    are_broken: list[bool] = []
    for claim in in_order():
        # Written before the import, so that an adapter which ends the process is visible.
        write(f"  {describe(claim)}")
        info = examine(claim)
        write(info.health.replace("\n", "\n    ") + "\n")
        are_broken.append(info.is_broken)
    if any(are_broken):
        write(f"{sum(are_broken)} of {len(are_broken)} adapters are broken\n")
    return int(any(are_broken))


def in_order() -> list[Claim]:
    """All claims in the order of the list."""
    return sorted(all_claims(), key=lambda c: (c.kind, c.class_name, c.distribution, c.prefix))


def describe(claim: Claim, health: str = "", *, is_broken: bool = False) -> AdapterInfo:
    """The info of a claim without an import."""
    names = claim.class_name, claim.prefix, claim.kind, claim.value, claim.distribution
    return AdapterInfo(*names, claim.version, health, is_broken)


def examine(claim: Claim) -> AdapterInfo:
    """Imports the adapter if its protocol version fits, and checks it."""
    same = claims_of_prefix(claim.kind, claim.prefix)
    if claim not in same:
        return describe(claim, "hidden by an adapter of this process")
    has_spoken = any(is_spoken(c) for c in same if c.package == claim.package)
    if not claim.fault and not is_spoken(claim) and has_spoken:
        return describe(claim, "not used: its package also has one for this protocol version")
    try:
        _check_class(claim)
        if claim in claims():
            _check_prefix(claim)
            _check_name(claim)
    except AdapterError as error:
        return describe(claim, str(error), is_broken=True)
    return describe(claim, "ok")


def _check_class(claim: Claim) -> None:
    if claim.fault:
        raise AdapterError(claim.fault)
    adapter = load(the_only([claim], claim.class_name))
    absent = call(claim, lambda: missing(adapter, claim.kind), "could not be examined")
    if absent:
        raise AdapterError(f"it has no {', '.join(absent)}. {cure(claim.package)}")
    if not callable(adapter):
        raise AdapterError(f"it is an object, not a class. {cure(claim.package)}")


def _check_prefix(claim: Claim) -> None:
    owned = [prefix for prefix in prefixes_of(claim.prefix) if prefix in KNOWN]
    same = claims_of_prefix(claim.kind, (owned or [claim.prefix])[0])
    first = the_only(same or [claim], f"{claim.prefix!r} ({claim.kind}s)")
    if str(first) != str(claim):
        raise AdapterError(
            f"{claim.prefix!r} belongs to {first}, which `as_{claim.kind}` uses. To use this one: "
            f'solstice.compat.register("{first.prefix}", solstice.compat.{claim.class_name})'
        )
    if not call(claim, lambda: is_found(claim.prefix), f"{claim.prefix!r} could not be imported"):
        raise AdapterError(prefix_fault(claim))


def _check_name(claim: Claim) -> None:
    from solstice import compat  # here, since `compat` imports this module

    name = claim.class_name
    module, _, attribute = claim.value.partition(":")
    way_out = f"To use it: from {module.strip()} import {attribute.strip().partition('.')[0]}"
    if not claim.is_owner and (name in compat.__all__ or name.startswith("_")):
        raise AdapterError(f"its name, solstice.compat.{name}, is taken by Solstice. {way_out}")
    named = [c for c in claims() if c.class_name == name]
    first = the_only(named, f"solstice.compat.{name}")
    if str(first) != str(claim):
        raise AdapterError(f"solstice.compat.{name} is that of {first}. {way_out}")


def frameworks() -> list[str]:
    """Name and version of each installed framework with an adapter."""
    claimed = {c.prefix.partition(".")[0] for c in claims() if c.kind != "unknown"}
    wrapped = {name for name in claimed - sys.stdlib_module_names if is_found(name)}
    found: dict[str, str] = {}
    for dist in distributions():
        for module in _modules_of(dist) & wrapped:
            found.setdefault(module, names_of(dist)[1])
    return sorted({found.get(module, f"{module}, of an unknown version") for module in wrapped})


def _modules_of(dist: Distribution) -> set[str]:
    """The top-level modules of a distribution."""
    try:
        declared = dist.read_text("top_level.txt") or ""
        paths: Iterable[str] = (dist.read_text("RECORD") or "").splitlines()
    except Exception:  # malformed metadata of one package must not break the list
        return set()
    inferred = {path.partition(",")[0].partition("/")[0].removesuffix(".py") for path in paths}
    return inferred | set(declared.split())
