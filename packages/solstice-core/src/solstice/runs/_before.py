"""What differs between two runs before their first step, in words."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from solstice._engine import StepDigest
from solstice.runs._info import RunInfo

_MANY = 60
"""The longest value to show."""


def differences_before(one: RunInfo, other: RunInfo) -> list[str]:
    """The differences of two runs in their program, data, settings and surroundings."""
    return [
        *_of_programs(one, other),
        *_of_values("scalar", one.computation.get("scalars"), other.computation.get("scalars")),
        *_of_values("hyperparameter", one.hyperparameters, other.hyperparameters),
        *_of_data(one.data, other.data),
        *_of_values("option", one.options, other.options),
        *_of_versions(one, other),
        *_of_devices(one, other),
        *_of_git(one.git or {}, other.git or {}),
        *_of_parents(one.parent, other.parent),
    ]


def _of_programs(one: RunInfo, other: RunInfo) -> list[str]:
    """The changes of each step, unless another JAX writes each step in other operations."""
    if one.versions.get("jax") != other.versions.get("jax"):
        return []
    mine, theirs = (run.computation.get("steps", {}) for run in (one, other))
    pairs = {name: (_digest(mine[name]), _digest(theirs[name])) for name in mine if name in theirs}
    return [
        f"program: {name} computes something else: {now.changes(was)}"
        for name, (was, now) in pairs.items()
        if was.digest != now.digest and mine[name]["shapes"] == theirs[name]["shapes"]
    ] + [
        f"program: {name} takes batches of {_words(mine[name]['shapes'])} and of "
        f"{_words(theirs[name]['shapes'])}"
        for name in pairs
        if mine[name]["shapes"] != theirs[name]["shapes"]
    ]


def _digest(note: Mapping[str, Any]) -> StepDigest:
    return StepDigest(note["digest"], note["operations"], note["numbers"])


def _of_values(kind: str, one: Any, other: Any) -> list[str]:
    mine, theirs = dict(_flat(one or {})), dict(_flat(other or {}))
    return [
        f"{kind} {name}: {_shown(name, mine)} and {_shown(name, theirs)}"
        for name in {**mine, **theirs}
        if not _is_same(name, mine, theirs)
    ]


def _flat(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts by their path, such as "model.width"."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(cast("dict[str, Any]", value), f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def _is_same(name: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both have the same value; NaN is itself."""
    return name in one and name in other and repr(one[name]) == repr(other[name])


def _shown(name: str, values: dict[str, Any]) -> str:
    return _words(values[name]) if name in values else "none"


def _words(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MANY else f"{text[:_MANY]}..."


def _of_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    names = {"identity": "training data", "validation": "validation data"}
    return [
        line.replace(".describe.", ".").replace(f"{key}.", "")
        for key, name in names.items()
        for line in _of_values(name, {key: one.get(key)}, {key: other.get(key)})
    ]


def _of_versions(one: RunInfo, other: RunInfo) -> list[str]:
    return _of_values("version of", one.versions, other.versions)


def _of_devices(one: RunInfo, other: RunInfo) -> list[str]:
    mine, theirs = (run.computation.get("topology", {}) for run in (one, other))
    settings = ("jax_threefry_partitionable", "xla_gpu_deterministic_ops")
    values = [
        {"devices": run.devices, "platform": run.platform, **{n: at.get(n) for n in settings}}
        for run, at in ((one, mine), (other, theirs))
    ]
    found = _of_values("on", *values)
    if one.devices == other.devices and mine.get("layout") != theirs.get("layout"):
        found.append("on devices: the arrays or the batches are split in another way")
    return found


def _of_git(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    words = [
        f"{git.get('commit', 'none'):.12}{' with changes' if git.get('is_dirty') else ''}"
        for git in (one, other)
    ]
    return [] if words[0] == words[1] else [f"git commit: {words[0]} and {words[1]}"]


def _of_parents(*parents: Mapping[str, Any] | None) -> list[str]:
    if parents[0] == parents[1]:
        return []
    words = [
        "none" if at is None else f"{at.get('folder')} at step {at.get('step')}" for at in parents
    ]
    changes = [str(change) for at in parents if at for change in at.get("changes", [])]
    return [f"parent: {words[0]} and {words[1]}", *(f"change of the branch: {c}" for c in changes)]
