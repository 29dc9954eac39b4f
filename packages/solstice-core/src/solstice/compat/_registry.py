"""Lookup of adapters by object or name: first those of this process, then installed ones."""

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

from solstice._arguments import text
from solstice.compat._claims import KNOWN, PROTOCOL_VERSION, Claim, Kind, claims
from solstice.compat._install import pip_install
from solstice.compat._load import AdapterError, load
from solstice.compat._protocols import Model, Optimizer

_PROTOCOLS: dict[Kind, type] = {"model": Model, "optimizer": Optimizer}

_registered: list[Claim] = []
"""The adapters registered in this process, newest last."""


def register(prefix: str, adapter: type[Any]) -> None:
    """Adds an adapter class to this process, with precedence over installed ones."""
    text("prefix", prefix, "toynet")
    kind: Kind = "model" if hasattr(adapter, "forward") else "optimizer"
    if absent := missing(adapter, kind):
        raise TypeError(
            f"{adapter!r} is not an adapter: a model has init and forward, an optimizer has init, "
            f"step and eval_params; it has no {', '.join(absent)}"
        )
    value = f"{adapter.__module__}:{adapter.__qualname__}"
    claim = Claim(
        kind, PROTOCOL_VERSION, prefix, value, adapter.__name__, "this process", lambda: adapter
    )
    _registered[:] = [c for c in _registered if (c.kind, c.prefix) != (kind, prefix)] + [claim]


def claims_of(wanted: Callable[[Claim], bool]) -> list[Claim]:
    """The wanted claims of this process; if there are none, the wanted installed ones."""
    return [c for c in _registered if wanted(c)] or [c for c in claims() if wanted(c)]


def claims_of_prefix(kind: Kind, prefix: str) -> list[Claim]:
    """The claims of exactly this prefix."""
    return claims_of(lambda claim: (claim.kind, claim.prefix) == (kind, prefix))


def all_claims() -> list[Claim]:
    """The claims of this process, then the installed ones."""
    return [*_registered, *claims()]


def adapter_class(name: str) -> type[Any]:
    """The adapter class of this name.

    Raises:
        AttributeError: there is no adapter of this name.
        AdapterError: its package is not installed or broken.
    """
    named = claims_of(lambda claim: claim.class_name == name)
    if named:
        return load(the_only(named, f"solstice.compat.{name}"))
    for _, known_name, distribution in KNOWN.values():
        if known_name == name:
            raise AdapterError(
                f"solstice.compat.{name} needs an adapter package: {pip_install(distribution)}"
            )
    raise AttributeError(
        f"module 'solstice.compat' has no attribute {name!r}; adapters installed: "
        f"{', '.join(adapter_names())}"
    )


def adapter_names() -> list[str]:
    """The names of the available adapter classes, sorted."""
    return sorted({c.class_name for c in all_claims() if is_spoken(c)})


def adapt(kind: Kind, obj: object, options: dict[str, Any]) -> Any:
    """The adapter of an object: itself if it is one, else an instance of the class for its type."""
    if isinstance(obj, _PROTOCOLS[kind]) and not isinstance(obj, type):
        if options:
            raise TypeError(
                f"{obj!r} is an adapter already, so options {sorted(options)} cannot be set: give "
                f"them to its class"
            )
        return obj
    if isinstance(obj, type):
        raise TypeError(f"as_{kind} was given the class {obj.__name__}; give an instance of it")
    if options:
        return _make(kind, obj, options)
    return _made_once(kind, obj)


def adapt_argument(name: str, kind: Kind, given: object) -> Any:
    """The adapter of an argument; an error starts with the name of the argument."""
    try:
        return adapt(kind, given, {})
    except (TypeError, AdapterError) as error:
        if type(error) not in (TypeError, AdapterError):  # a subclass may take other arguments
            raise
        raise type(error)(f"{name}: {error}") from error


def _make(kind: Kind, obj: object, options: dict[str, Any]) -> Any:
    claim = _claim_for(kind, obj)
    adapter = load(claim)(obj, **options)
    if not isinstance(adapter, _PROTOCOLS[kind]):
        raise AdapterError(
            f"{claim} did not return a {kind}: its result, a {type(adapter).__name__}, has no "
            f"{', '.join(missing(adapter, kind))}. Report this to its author"
        )
    return adapter


def _claim_for(kind: Kind, obj: object) -> Claim:
    prefixes = list(_prefixes(obj))
    claimed = [(prefix, found) for prefix in prefixes if (found := claims_of_prefix(kind, prefix))]
    usable = [(prefix, found) for prefix, found in claimed if any(map(is_spoken, found))]
    for prefix, found in usable or claimed:
        return the_only(found, f"{prefix!r} ({kind}s)")
    raise _nothing_claims(kind, obj, prefixes)


def _nothing_claims(kind: Kind, obj: object, prefixes: list[str]) -> Exception:
    function = f"as_{kind}"
    shown = f"{type(obj).__module__}.{type(obj).__qualname__}"
    article, other = ("an", "optimizer") if kind == "model" else ("a", "model")
    for prefix in prefixes:
        if any(not claim.fault for claim in claims_of_prefix(other, prefix)) or (
            prefix in KNOWN and KNOWN[prefix][0] == other
        ):
            return TypeError(
                f"{function} was given {article} {other}: {shown}. Use as_{other}; an Experiment "
                f"takes the model first, and then the optimizer"
            )
        if prefix in KNOWN:
            _, name, distribution = KNOWN[prefix]
            return AdapterError(
                f"{function} was given a {shown}, which solstice.compat.{name} wraps: "
                f"{pip_install(distribution)}"
            )
    if isinstance(obj, types.FunctionType | types.MethodType | functools.partial):
        hint = {
            "model": "Name the adapter that takes a factory, as in `compat.EquinoxModel(factory)`",
            "optimizer": "Call it, and give its result",
        }
        return TypeError(
            f"{function} was given a function, which does not show its framework. {hint[kind]}"
        )
    known = {c.prefix for c in all_claims() if c.kind == kind and not c.fault}
    methods = "init and forward" if kind == "model" else "init, step and eval_params"
    return TypeError(
        f"no installed adapter wraps a {shown}. Prefixes of {kind} types that are wrapped: "
        f"{', '.join(sorted(known)) or 'none'}. Install the framework's adapter package, or write "
        f"a class with {methods} (solstice.compat.{_PROTOCOLS[kind].__name__}) around it"
    )


def _prefixes(obj: object) -> Iterator[str]:
    """Import prefixes for an object: those of its type, then of its bases."""
    modules = [cls.__module__ for cls in type(obj).__mro__]
    if isinstance(obj, tuple) and obj:  # a bare (init, apply) pair, or a (module, state) pair
        first = cast("tuple[Any, ...]", obj)[0]
        owners = [first] if isinstance(first, types.FunctionType) else type(first).__mro__
        modules += [owner.__module__ for owner in owners]
    for module in dict.fromkeys(modules):
        yield from prefixes_of(module)


def prefixes_of(module: str) -> list[str]:
    """A module and its parent packages, longest first, but prefixes in `KNOWN` before others.

    So a third party's claim on a submodule does not replace the adapter of this repository.
    """
    parts = module.split(".")
    longest_first = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return sorted(longest_first, key=lambda prefix: prefix not in KNOWN)


def is_spoken(claim: Claim) -> bool:
    """Whether the claim is readable and for the protocol version of this solstice-core."""
    return claim.version == PROTOCOL_VERSION and not claim.fault


def the_only(found: list[Claim], what: str) -> Claim:
    """The claim to use; only a claim without fault competes, and the owner of a prefix wins.

    Raises:
        AdapterError: several claims remain, or all are for another protocol version.
    """
    spoken = [claim for claim in found if is_spoken(claim)]
    spoken = [claim for claim in spoken if claim.is_owner] or spoken
    if not spoken:
        return _unspoken(min(found, key=lambda claim: bool(claim.fault)), what)
    if len({str(claim) for claim in spoken}) > 1:
        lines = "\n  ".join(str(claim) for claim in spoken)
        several = len({claim.distribution for claim in spoken}) > 1
        cure = "Uninstall all but one, or import" if several else "Import"
        raise AdapterError(
            f"{what} is claimed by {len(spoken)} installed adapters:\n  {lines}\n"
            f"{cure} the class you want and wrap the object with it"
        )
    return spoken[0]


def _unspoken(claim: Claim, what: str) -> Claim:
    if claim.fault:
        return claim  # `load` raises its fault
    upgrade = f"pip install --upgrade {claim.package}" if claim.package else "delete that folder"
    if claim.version > PROTOCOL_VERSION:
        upgrade = pip_install("solstice-core", "--upgrade")
    raise AdapterError(
        f"{what} is provided by {claim}, made for adapter protocol v{claim.version}; this "
        f"solstice-core speaks v{PROTOCOL_VERSION}. To fix: {upgrade}"
    )


def missing(adapter: object, kind: Kind) -> list[str]:
    """The methods of the protocol that are missing in an adapter."""
    methods = [name for name in vars(_PROTOCOLS[kind]) if not name.startswith("_")]
    return [name for name in methods if not hasattr(adapter, name)]


_made: dict[tuple[Kind, int | tuple[int, ...]], tuple[Any, Any]] = {}
"""A weak reference to the adapter of each object, and the object: the entry keeps it alive, so that
its id cannot be reused by another one."""


def _made_once(kind: Kind, obj: object) -> Any:
    """The adapter of an object, the same while it is alive.

    Adapters compare by identity, so Experiments with the same bare model share compiled programs
    only if they share its adapter. Objects are keyed by identity too, because a Linen module with a
    list has no hash, and an Optax transformation is a tuple, which cannot be weakly referenced.
    """
    key = kind, _identity(obj)
    reference, _ = _made.get(key, (lambda: None, None))
    adapter = reference()
    if adapter is not None:
        return adapter
    adapter = _make(kind, obj, {})

    def forget(dead: object) -> None:
        if _made.get(key, (None,))[0] is dead:
            del _made[key]

    _made[key] = weakref.ref(adapter, forget), obj
    return adapter


def _identity(obj: object) -> int | tuple[int, ...]:
    """The id of an object; tuples with identical parts are the same object."""
    if isinstance(obj, tuple):
        return tuple(id(part) for part in cast("tuple[Any, ...]", obj))
    return id(obj)
