"""Discovery of adapters: found from the metadata of installed packages, loaded on use.

An adapter package declares, in the entry-point group of its protocol's version, the import prefix
of the types that it wraps and the adapter class:

    [project.entry-points."solstice.models.v1"]
    "flax.linen" = "solstice_flax:FlaxModel"

From this line follow `solstice.compat.FlaxModel`, its place in `dir(solstice.compat)`, and
`as_model(linen_module)`.
"""

import functools
import re
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, cast

from solstice.compat._protocols import Model, Optimizer

Kind = Literal["model", "optimizer"]

PROTOCOL_VERSION = 1
_PROTOCOLS: dict[Kind, type] = {"model": Model, "optimizer": Optimizer}
_GROUP = re.compile(r"solstice\.(model|optimizer)s\.v(\d+)")

KNOWN = {
    "flax.linen": ("model", "FlaxModel", "solstice-flax"),
    "flax.nnx": ("model", "NNXModel", "solstice-flax"),
    "haiku": ("model", "HaikuModel", "solstice-haiku"),
    "jax.example_libraries.stax": ("model", "StaxModel", "solstice-stax"),
    "jax.example_libraries.optimizers": ("optimizer", "TripleOptimizer", "solstice-stax"),
    "optax": ("optimizer", "OptaxOptimizer", "solstice-optax"),
}
"""Adapters that there are, installed or not: what to name in an error."""


class AdapterError(ImportError):
    """An adapter is not installed, cannot be imported, is claimed twice, or is of another version.

    The message says which distribution it is about and what to do.
    """


@dataclass(frozen=True)
class Claim:
    """What an entry point says, or a call of `register`: this class wraps types of that prefix.

    Attributes:
        kind: "model" or "optimizer".
        version: of the protocol that it was made for.
        prefix: import prefix of the types.
        value: where the class is, as in "solstice_flax:FlaxModel".
        class_name: its name in `solstice.compat`.
        distribution: name and version of what declares it.
        load: gives the class.
    """

    kind: Kind
    version: int
    prefix: str
    value: str
    class_name: str
    distribution: str
    load: Callable[[], Any] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.distribution} ({self.value})"


_registered: list[Claim] = []
"""What was registered in this process; the newest come last."""


def register(prefix: str, adapter: Any) -> None:
    """Adds an adapter class of this process, before all that are installed."""
    kind: Kind = "model" if hasattr(adapter, "forward") else "optimizer"
    if missing := _missing(adapter, _PROTOCOLS[kind]):
        raise TypeError(
            f"{adapter!r} is no adapter: a model has init and forward, an optimizer has init, step "
            f"and eval_params; it lacks {', '.join(missing)}"
        )
    value = f"{adapter.__module__}:{adapter.__qualname__}"
    claim = Claim(
        kind, PROTOCOL_VERSION, prefix, value, adapter.__name__, "this process", lambda: adapter
    )
    _registered[:] = [c for c in _registered if (c.kind, c.prefix) != (kind, prefix)] + [claim]


def _claims_of(wanted: Callable[[Claim], bool]) -> list[Claim]:
    """The claims of a kind: those of this process if there are any, else the installed ones."""
    return [c for c in _registered if wanted(c)] or [c for c in claims() if wanted(c)]


@functools.cache
def claims() -> tuple[Claim, ...]:
    """All that installed distributions declare, of any protocol version; read once."""
    found: dict[tuple[Any, ...], Claim] = {}
    every = entry_points()
    for group in every.groups:
        match = _GROUP.fullmatch(group)
        if match is None:
            continue
        kind: Kind = "model" if match[1] == "model" else "optimizer"
        for point in every.select(group=group):
            claim = _claim_of(kind, int(match[2]), point)
            # An editable install lists its metadata twice; the same words are one claim.
            found.setdefault((kind, claim.version, point.name, str(claim)), claim)
    return tuple(found.values())


def _claim_of(kind: Kind, version: int, point: EntryPoint) -> Claim:
    dist = point.dist
    distribution = "an unknown distribution" if dist is None else f"{dist.name} {dist.version}"
    return Claim(kind, version, point.name, point.value, point.attr, distribution, point.load)


def all_claims() -> list[Claim]:
    """Those of this process and the installed ones."""
    return [*_registered, *claims()]


def health(claim: Claim) -> str:
    """What is wrong with an adapter, or "ok". It is imported, if it speaks the protocol."""
    try:
        same = _claims_of(lambda c: (c.kind, c.prefix) == (claim.kind, claim.prefix))
        if claim not in same:
            return "hidden by an adapter of this process"
        adapter = load(_the_only([claim], claim.class_name))
        if missing := _missing(adapter, _PROTOCOLS[claim.kind]):
            return f"it lacks {', '.join(missing)}"
        _the_only(same, f"{claim.prefix!r} ({claim.kind}s)")
    except AdapterError as error:
        return str(error)
    return "ok"


def adapter_class(name: str) -> Any:
    """The adapter class of this name. Raises AttributeError where no adapter has that name."""
    named = _claims_of(lambda claim: claim.class_name == name)
    if named:
        return load(_the_only(named, f"solstice.compat.{name}"))
    for _, known_name, distribution in KNOWN.values():
        if known_name == name:
            raise AdapterError(
                f"solstice.compat.{name} needs an adapter package: pip install {distribution}"
            )
    raise AttributeError(
        f"module 'solstice.compat' has no attribute {name!r}; adapters installed: "
        f"{', '.join(adapter_names())}"
    )


def adapter_names() -> list[str]:
    """The names of the adapter classes that are installed."""
    return sorted({c.class_name for c in all_claims() if c.version == PROTOCOL_VERSION})


def adapt(kind: Kind, obj: Any, options: dict[str, Any]) -> Any:
    """The adapter of an object: itself if it is one, else one made by the class that claims it."""
    if isinstance(obj, _PROTOCOLS[kind]) and not isinstance(obj, type):
        if options:
            raise TypeError(
                f"{obj!r} is an adapter already; options {sorted(options)} come too late"
            )
        return obj
    if isinstance(obj, type):
        raise TypeError(f"as_{kind} was given the class {obj.__name__}; give an instance of it")
    if options:
        return _make(kind, obj, options)
    return _MEMO.get_or_make(kind, obj)


def _make(kind: Kind, obj: Any, options: dict[str, Any]) -> Any:
    claim = _claim_for(kind, obj)
    adapter = load(claim)(obj, **options)
    if not isinstance(adapter, _PROTOCOLS[kind]):
        raise AdapterError(
            f"{claim} did not give a {kind}: its result, a {type(adapter).__name__}, lacks "
            f"{', '.join(_missing(adapter, _PROTOCOLS[kind]))}. Report this to its author"
        )
    return adapter


def _claim_for(kind: Kind, obj: Any) -> Claim:
    prefixes = list(_prefixes(obj))
    for prefix in prefixes:
        mine = _claims_of(lambda c, prefix=prefix: (c.kind, c.prefix) == (kind, prefix))
        if mine:
            return _the_only(mine, f"{prefix!r} ({kind}s)")
    raise _nothing_claims(kind, obj, prefixes)


def _nothing_claims(kind: Kind, obj: Any, prefixes: list[str]) -> Exception:
    function = f"as_{kind}"
    shown = f"{type(obj).__module__}.{type(obj).__qualname__}"
    other: Kind = "optimizer" if kind == "model" else "model"
    for prefix in prefixes:
        if any(claim.prefix == prefix and claim.kind == other for claim in all_claims()) or (
            prefix in KNOWN and KNOWN[prefix][0] == other
        ):
            return TypeError(
                f"{function} was given {_article(other)}: {shown}. Use as_{other}; an Experiment "
                f"takes the model first, and then the optimizer"
            )
        if prefix in KNOWN:
            _, name, distribution = KNOWN[prefix]
            return AdapterError(
                f"{function} was given a {shown}, which solstice.compat.{name} wraps: "
                f"pip install {distribution}"
            )
    if isinstance(obj, types.FunctionType | types.MethodType | functools.partial):
        hint = {
            "model": "Name the adapter that takes a factory, as in `compat.EquinoxModel(factory)`",
            "optimizer": "Call it, and give what it makes",
        }
        return TypeError(
            f"{function} was given a function, which does not show its framework. {hint[kind]}"
        )
    known = ", ".join(sorted({c.prefix for c in all_claims() if c.kind == kind})) or "none"
    methods = "init and forward" if kind == "model" else "init, step and eval_params"
    return TypeError(
        f"no installed adapter wraps a {shown}. Prefixes of {kind} types that are wrapped: "
        f"{known}. Install the framework's adapter package, or write a class with {methods} "
        f"(solstice.compat.{_PROTOCOLS[kind].__name__}) around it"
    )


def _prefixes(obj: Any) -> Iterator[str]:
    """Import prefixes that may claim an object: of its type and bases, the longest first."""
    modules = [cls.__module__ for cls in type(obj).__mro__]
    if isinstance(obj, tuple) and obj:  # a bare (init, apply) pair, or a (module, state) pair
        first: Any = cast("tuple[Any, ...]", obj)[0]
        is_function = isinstance(first, types.FunctionType)
        modules += (
            [first.__module__] if is_function else [c.__module__ for c in type(first).__mro__]
        )
    for module in dict.fromkeys(modules):
        parts = module.split(".")
        for end in range(len(parts), 0, -1):
            yield ".".join(parts[:end])


def _the_only(found: list[Claim], what: str) -> Claim:
    spoken = [claim for claim in found if claim.version == PROTOCOL_VERSION]
    if not spoken:
        claim = found[0]
        upgrade = (
            "solstice-core" if claim.version > PROTOCOL_VERSION else claim.distribution.split()[0]
        )
        raise AdapterError(
            f"{what} is provided by {claim}, made for adapter protocol v{claim.version}; this "
            f"solstice-core speaks v{PROTOCOL_VERSION}. To fix: pip install --upgrade {upgrade}"
        )
    if len({str(claim) for claim in spoken}) > 1:
        lines = "\n  ".join(str(claim) for claim in spoken)
        raise AdapterError(
            f"{what} is claimed by {len(spoken)} installed adapters:\n  {lines}\n"
            f"Uninstall all but one, or import the class you want and wrap the object with it"
        )
    return spoken[0]


def load(claim: Claim) -> Any:
    """The adapter class. Raises AdapterError where it cannot be imported."""
    try:
        return claim.load()
    except Exception as error:
        name = claim.distribution.split()[0]
        raise AdapterError(
            f"the adapter {claim.value!r} of {claim.distribution} is installed but could not be "
            f"imported: {type(error).__name__}: {error}\nTo fix: pip install --upgrade {name}, or "
            f"do without it: pip uninstall {name}"
        ) from error


def _missing(adapter: Any, protocol: type) -> list[str]:
    methods = [name for name in vars(protocol) if not name.startswith("_")]
    return [name for name in methods if not hasattr(adapter, name)]


def _article(kind: Kind) -> str:
    return "an optimizer" if kind == "optimizer" else "a model"


class _Memo:
    """Gives the same adapter for the same object, as long as somebody holds that adapter.

    Adapters compare by identity, so that Experiments which share a bare model share a compilation
    only if they share its adapter. Objects are told apart by identity too: a Linen module with a
    list in it has no hash, and an optax transformation is a tuple, which takes no weak reference.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[Kind, int | tuple[int, ...]], tuple[Any, Any]] = {}

    def get_or_make(self, kind: Kind, obj: Any) -> Any:
        key = kind, _identity(obj)
        reference, _ = self._entries.get(key, (lambda: None, None))
        adapter = reference()
        if adapter is not None:
            return adapter
        adapter = _make(kind, obj, {})

        def forget(dead: Any) -> None:
            if self._entries.get(key, (None,))[0] is dead:
                del self._entries[key]

        # The object lives as long as the entry, so that its identity is not given to another.
        self._entries[key] = weakref.ref(adapter, forget), obj
        return adapter


def _identity(obj: Any) -> int | tuple[int, ...]:
    """Two tuples of the very same parts are the same object."""
    if isinstance(obj, tuple):
        return tuple(id(part) for part in cast("tuple[Any, ...]", obj))
    return id(obj)


_MEMO = _Memo()
