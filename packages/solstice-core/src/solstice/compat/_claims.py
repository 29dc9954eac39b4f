"""Entry points of adapter packages, read from metadata without an import.

An adapter package declares, in the entry-point group of its protocol's version, the import prefix
of the types that it wraps and the adapter class:

    [project.entry-points."solstice.models.v1"]
    "flax.linen" = "solstice_flax:FlaxModel"

Metadata of any package may be malformed. An unreadable entry point becomes a claim with a `fault`:
it is listed, raises an error when used, and never hides another claim.
"""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distribution, distributions
from typing import Any, Literal, cast

from solstice.compat._install import pip_install

Kind = Literal["model", "optimizer", "layout", "unknown"]

PROTOCOL_VERSION = 1
_GROUP = re.compile(r"solstice\.(model|optimizer|layout)s\.v(0|[1-9]\d{0,3})")
_READ = (
    f'"solstice.models.v{PROTOCOL_VERSION}", "solstice.optimizers.v{PROTOCOL_VERSION}" and '
    f'"solstice.layouts.v{PROTOCOL_VERSION}"'
)
_MODULE = re.compile(r"\w+(\.\w+)*")
_CLASS = re.compile(rf"({_MODULE.pattern})\s*:\s*(\w+\.)*(?P<name>\w+)\s*(\[.*\]\s*)?")

KNOWN: dict[str, tuple[Kind, str, str]] = {
    "equinox": ("model", "EquinoxModel", "solstice-core"),
    "flax.linen": ("model", "FlaxModel", "solstice-flax"),
    "flax.nnx": ("model", "NNXModel", "solstice-flax"),
    "haiku": ("model", "HaikuModel", "solstice-haiku"),
    "jax.example_libraries.stax": ("model", "StaxModel", "solstice-stax"),
    "jax.example_libraries.optimizers": ("optimizer", "TripleOptimizer", "solstice-stax"),
    "optax": ("optimizer", "OptaxOptimizer", "solstice-optax"),
}
"""The adapters of this repository by prefix. They own their prefix, and errors recommend them."""


@dataclass(frozen=True)
class Claim:
    """An entry point, or a call of `register`: the statement that a class wraps types of a prefix.

    Attributes:
        kind: "model", "optimizer" or "layout"; "unknown" if Solstice does not read the group.
        version: the protocol version of the adapter.
        prefix: the import prefix of the types.
        value: the location of the class, such as "solstice_flax:FlaxModel".
        class_name: its name in `solstice.compat`; empty if the value does not name a class.
        distribution: name and version of the package that declares it.
        load: imports and returns the class.
        package: the name for pip; empty if there is none.
        fault: the error in the entry point, and how to fix it; empty if it is readable.
    """

    kind: Kind
    version: int
    prefix: str
    value: str
    class_name: str
    distribution: str
    load: Callable[[], Any] = field(compare=False, repr=False)
    package: str = ""
    fault: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} ({self.value})"

    @property
    def is_owner(self) -> bool:
        """Whether this is the adapter of this repository for its prefix."""
        return KNOWN.get(self.prefix) == (self.kind, self.class_name, _normal(self.package))


def cure(package: str, how: str = "--upgrade") -> str:
    """The pip command to repair or remove a package."""
    if not package:
        return "To fix: delete that folder"
    is_ours = _normal(package) in {ours for _, _, ours in KNOWN.values()}
    install = pip_install(package, how) if is_ours else f"pip install {how} {package}"
    return f"To fix: {install}, or do without it: pip uninstall {package}"


@functools.cache
def claims() -> tuple[Claim, ...]:
    """The claims of all installed adapters, of any protocol version."""
    return tuple(claim for claim in _installed() if claim.kind != "layout")


def layout_claims() -> tuple[Claim, ...]:
    """The claims of installed layouts of this version: the prefix is the name of the layout."""
    return tuple(
        claim
        for claim in _installed()
        if claim.kind == "layout" and claim.version == PROTOCOL_VERSION
    )


@functools.cache
def _installed() -> tuple[Claim, ...]:
    """The claims of all installed distributions; read once per process."""
    found: dict[tuple[Any, ...], Claim] = {}
    for dist in distributions():
        for claim in _claims_of(dist):
            # An editable install may list its metadata twice, so equal claims count once.
            found.setdefault((claim.kind, claim.version, claim.prefix, str(claim)), claim)
    return tuple(found.values())


def _claims_of(dist: Distribution) -> Iterator[Claim]:
    # Parsed here, because `importlib.metadata.entry_points()` raises if any package is malformed.
    try:
        text = dist.read_text("entry_points.txt") or ""
    except Exception as error:
        fault = f"its entry_points.txt cannot be read: {type(error).__name__}: {error}"
        yield _claim(dist, "", "", "", fault)
        return
    if not re.search(r"\[\s*solstice\.", text) or _is_shadowed(dist, text):
        return
    for group, prefix, value in _entry_points(text):
        if group.startswith("solstice."):
            yield _claim(dist, group, prefix, value, _fault(group, prefix, value))


def _entry_points(text: str) -> Iterator[tuple[str, str, str]]:
    """Group, name and value of each line; a line without "=" has no value."""
    group = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif not line.startswith("#"):
            name, _, value = line.partition("=")
            yield group, name.strip(), value.strip()


def _fault(group: str, prefix: str, value: str) -> str:
    if _GROUP.fullmatch(group) is None:
        return f'its group "{group}" is not one of those that Solstice reads: {_READ}'
    if not prefix:
        return f"its entry point `= {value}` has no name, which is the import prefix of the types"
    if _CLASS.fullmatch(value) is None:
        module = value if _MODULE.fullmatch(value) else "its_module"
        return (
            f"its entry point `{prefix} = {value}` does not name a class. "
            f'Its author writes "{prefix}" = "{module}:ItsClass"'
        )
    return ""


def _claim(dist: Distribution, group: str, prefix: str, value: str, fault: str) -> Claim:
    package, shown = names_of(dist)
    found, reference = _GROUP.fullmatch(group), _CLASS.fullmatch(value)
    return Claim(
        "unknown" if found is None else cast("Kind", found[1]),
        0 if found is None else int(found[2]),
        prefix,
        value,
        "" if reference is None else reference["name"],
        shown,
        EntryPoint(prefix, value, group).load if reference else _nothing,
        package,
        f"{fault}. {cure(package)}" if fault else "",
    )


def _nothing() -> None:
    """The loader of an entry point that does not name a class."""


def names_of(dist: Distribution) -> tuple[str, str]:
    """The name for pip, and the text to show; for a distribution without a name, its folder."""
    name, version = _metadata(dist, "Name"), _metadata(dist, "Version")
    if name:
        return name, f"{name} {version}".strip()
    return "", f"a distribution without a name, {getattr(dist, '_path', dist.locate_file(''))}"


def _metadata(dist: Distribution, key: str) -> str:
    try:
        return str(dist.metadata[key] or "")
    except Exception:  # no METADATA, or not UTF-8; the type of error depends on the Python version
        return ""


def _is_shadowed(dist: Distribution, text: str) -> bool:
    """Whether an earlier folder of `sys.path` has another version, which Python would import."""
    try:
        return distribution(_metadata(dist, "Name")).read_text("entry_points.txt") != text
    except Exception:  # the distribution has no name
        return False


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
