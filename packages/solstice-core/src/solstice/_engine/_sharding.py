"""Sharding rules: how each array of an Experiment is split over the devices of a mesh."""

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from jax import ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solstice import _tree
from solstice._errors import ShardingError

Spec: TypeAlias = str | PartitionSpec
"""A word, such as "fsdp", or the axes of the mesh for each axis of an array."""

Sharding: TypeAlias = str | Mapping[str, Spec] | Callable[[str, ShapeDtypeStruct], Spec]
"""The `sharding` of a Trainer."""

WORDS = ("replicated", "fsdp")

MEMBERS = "members"
"""The `sharding` that spreads the members of a `solstice.Population` over the devices."""

FSDP_SIZE = 2**16
"""The elements from which "fsdp" splits an array; to collect a smaller one costs more time."""
# A choice: 256 KiB in float32. Kauldron splits from 4 MiB.


@dataclass(frozen=True)
class Rule:
    """How the arrays of a state are split.

    Attributes:
        patterns: pairs of a path pattern and a spec; the first match counts.
        function: a function of a path and an array, in place of patterns.
    """

    patterns: tuple[tuple[str, Spec], ...] = ()
    function: Callable[[str, ShapeDtypeStruct], Spec] | None = None

    @staticmethod
    def of(given: object) -> "Rule":
        """The `sharding` of a Trainer, checked.

        Raises:
            ValueError: an unknown word.
            TypeError: something else.
        """
        if isinstance(given, str):
            word = given if given == MEMBERS else _word(given, "sharding", f', "{MEMBERS}"')
            return Rule((("*", word),))
        if isinstance(given, Mapping):
            pairs = cast("Mapping[object, object]", given).items()
            return Rule(tuple((_pattern(k), _spec(v, f"sharding[{k!r}]")) for k, v in pairs))
        if callable(given):
            return Rule(function=cast("Any", given))
        raise TypeError(
            f'sharding must be "replicated", "fsdp", "members", a dict of path patterns such as '
            f'{{"*kernel": PartitionSpec(None, "model"), "*": "fsdp"}}, or a function of a path '
            f"and an array; it is {given!r:.60}"
        )

    @property
    def is_members(self) -> bool:
        """Whether each device has some members of a population, and whole batches."""
        return self.patterns == (("*", MEMBERS),)

    def spec(self, path: str, like: ShapeDtypeStruct) -> Spec:
        """The spec of an array."""
        if self.function is not None:
            return _spec(self.function(path, like), f"the sharding of {path!r}")
        index = self._first_match(path)
        return "replicated" if index is None else self.patterns[index][1]

    def _first_match(self, path: str) -> int | None:
        matches = (i for i, (one, _) in enumerate(self.patterns) if fnmatch.fnmatchcase(path, one))
        return next(matches, None)

    def check_patterns(self, paths: Sequence[str]) -> None:
        """Raises a ShardingError for a pattern that decides nothing."""
        deciding = {self._first_match(path) for path in paths}
        for index, (pattern, _) in enumerate(self.patterns):
            if index not in deciding and any(fnmatch.fnmatchcase(x, pattern) for x in paths):
                raise ShardingError(
                    f"sharding has the pattern {pattern!r}, and patterns before it match all of "
                    f"its arrays. The first match counts: write {pattern!r} before them"
                )
            if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
                some = ", ".join(map(repr, paths[:8])) + (", ..." if len(paths) > 8 else "")
                raise ShardingError(
                    f"sharding has the pattern {pattern!r}, which matches no array of the "
                    f"Experiment; the arrays are {some}. `*` matches any text, as in '*kernel'; "
                    f"`print(solstice.summary(exp))` shows the paths"
                )


REPLICATED = Rule((("*", "replicated"),))


def shardings(
    rule: Rule, paths: Sequence[str], types: Sequence[ShapeDtypeStruct], mesh: Mesh, axis: str
) -> tuple[NamedSharding, ...]:
    """The sharding of each array.

    Args:
        rule: the rule.
        paths: the paths of the arrays, such as "params/dense/kernel".
        types: their shapes and dtypes.
        mesh: the devices.
        axis: the axis of the mesh along which batches are split, and arrays by "fsdp".

    Raises:
        ShardingError: a pattern decides nothing, or a spec does not fit its array.
    """
    rule.check_patterns(paths)
    if rule.is_members:
        return tuple(NamedSharding(mesh, spec) for spec in _over_members(paths, types, mesh, axis))
    found: list[NamedSharding] = []
    for path, like in zip(paths, types, strict=True):
        spec = rule.spec(path, like)
        if spec == "fsdp":
            spec = _fsdp(like, mesh.shape[axis], axis)
        elif not isinstance(spec, PartitionSpec):
            spec = PartitionSpec()
        _check_fits(spec, path, like, mesh)
        found.append(NamedSharding(mesh, spec))
    return tuple(found)


@dataclass(frozen=True)
class Spread:
    """How a step is spread over devices.

    Attributes:
        parts: the number of devices that share its work.
        split: the sharding of each array of the state; none on one device.
    """

    parts: int = 1
    split: tuple[NamedSharding, ...] = ()

    def nbytes(self, types: Sequence[ShapeDtypeStruct], indices: Iterable[int]) -> int:
        """The bytes on one device of the arrays with these indices."""
        if not self.split:
            return sum(size_of(types[index]) for index in indices)
        return sum(shard_bytes(types[index], self.split[index]) for index in indices)


ONE = Spread()
"""One device."""


def left_whole(
    rule: Rule,
    paths: Sequence[str],
    types: Sequence[ShapeDtypeStruct],
    split: Sequence[NamedSharding],
) -> dict[str, ShapeDtypeStruct]:
    """The large arrays that "fsdp" leaves whole, because the devices divide none of their axes."""
    return {
        path: like
        for path, like, one in zip(paths, types, split, strict=True)
        if like.size >= FSDP_SIZE
        and one.is_fully_replicated
        and one.mesh.size > 1
        and not _tree.is_key(cast("Any", like))
        and rule.spec(path, like) == "fsdp"
    }


def size_of(like: ShapeDtypeStruct) -> int:
    """The bytes of an array."""
    return like.size * like.dtype.itemsize


def shard_bytes(like: ShapeDtypeStruct, sharding: NamedSharding) -> int:
    """The bytes of an array on one device."""
    return math.prod(sharding.shard_shape(like.shape)) * like.dtype.itemsize


def _fsdp(like: ShapeDtypeStruct, parts: int, axis: str) -> PartitionSpec:
    """Splits the longest axis that the devices divide; keys and small arrays stay whole."""
    if _tree.is_key(cast("Any", like)) or like.size < FSDP_SIZE:
        return PartitionSpec()
    for index in sorted(range(len(like.shape)), key=lambda index: -like.shape[index]):
        if like.shape[index] % parts == 0:
            return PartitionSpec(*[None] * index, axis)
    return PartitionSpec()


def _over_members(
    paths: Sequence[str], types: Sequence[ShapeDtypeStruct], mesh: Mesh, axis: str
) -> list[PartitionSpec]:
    """Splits the arrays of a population along axis 0, if the devices divide the members."""
    if not any(map(is_of_members, paths, types)):
        raise ShardingError(
            f'sharding="members" spreads the members of a solstice.Population over the devices, '
            f"and this Experiment has no members; its arrays are "
            f'{", ".join(map(repr, paths[:4]))}, .... Write sharding="replicated" or "fsdp"'
        )
    parts = mesh.shape[axis]
    return [
        PartitionSpec(axis)
        if is_of_members(path, like) and like.shape[0] % parts == 0
        else PartitionSpec()
        for path, like in zip(paths, types, strict=True)
    ]


def is_of_members(path: str, like: ShapeDtypeStruct) -> bool:
    """Whether an array is of a population, with the members on axis 0, by its path."""
    *folders, name = path.split("/")
    if not like.shape:  # a number of Python, the same for all members
        return False
    return bool({"members", "hyperparameters"} & {*folders}) or name in ("ids", "is_active")


def _check_fits(spec: PartitionSpec, path: str, like: ShapeDtypeStruct, mesh: Mesh) -> None:
    given = f"sharding gives `{path}`, {like.dtype}{list(like.shape)}, the spec {spec}"
    if len(spec) > len(like.shape):
        raise ShardingError(
            f"{given}, which is for {len(spec)} axes, and the array has {len(like.shape)}. Write "
            f"at most one entry for each axis, or match fewer arrays"
        )
    used = [name for names in spec for name in _names(names)]
    if len({*used}) < len(used):
        raise ShardingError(f"{given}, which names an axis of the mesh twice. Name each once")
    for size, names in zip(like.shape, spec, strict=False):
        parts = 1
        for name in _names(names):
            if name not in mesh.shape:
                raise ShardingError(
                    f"{given}, and the mesh has no axis {name!r}; its axes are "
                    f"{', '.join(map(repr, mesh.axis_names))}"
                )
            parts *= mesh.shape[name]
        if size % parts:
            raise ShardingError(
                f"{given}, and {parts} devices cannot divide an axis of {size}. Pad the array to "
                f"{math.ceil(size / parts) * parts}, split another axis, or leave it whole with "
                f"PartitionSpec()"
            )


def _names(names: Any) -> tuple[str, ...]:
    """The axes of the mesh that split one axis of an array."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def _word(word: str, name: str, more: str = "") -> str:
    if word not in WORDS:
        raise ValueError(
            f'{name} must be "replicated", "fsdp"{more} or a jax.sharding.PartitionSpec; it is '
            f"{word!r}"
        )
    return word


def _pattern(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the keys of sharding must be path patterns, texts; one is {key!r:.60}")
    return key


def _spec(value: object, name: str) -> Spec:
    if isinstance(value, PartitionSpec):
        return value
    if isinstance(value, str):
        return _word(value, name)
    raise TypeError(
        f'{name} must be a jax.sharding.PartitionSpec, "replicated" or "fsdp"; it is {value!r:.60}'
    )
