"""Computation: steps, scalars and devices of a run, saved and compared when it is resumed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import numpy as np

from solstice import _tree
from solstice._engine import StepCode, StepDigest, Stepper, topology
from solstice._experiment import Experiment
from solstice._loop._about import About

_Scalar: TypeAlias = bool | float
_ARRAYS: Any = (jax.Array, np.ndarray, np.generic)
_NOT_DETERMINISTIC = (
    "on a GPU, XLA may compute other bits each time: set "
    "`XLA_FLAGS=--xla_gpu_deterministic_ops=true` before Python starts, in both runs"
)


@dataclass(frozen=True)
class TopologyNote:
    """The devices in a checkpoint; `words` are those of `topology_in_words`."""

    devices: int
    kind: str
    layout: str
    jax_threefry_partitionable: bool
    xla_gpu_deterministic_ops: bool
    words: str = "1 device"


@dataclass(frozen=True)
class StepNote:
    """A step in a checkpoint; `shapes` are pairs of a dtype and a shape."""

    digest: str
    operations: dict[str, int]
    numbers: dict[str, int]
    shapes: list[list[str | list[int]]]


@dataclass(frozen=True)
class ComputationNote:
    """A computation in a checkpoint; see `Computation.note`."""

    steps: dict[str, StepNote] = field(default_factory=dict[str, StepNote])
    scalars: dict[str, bool | float] = field(default_factory=dict[str, bool | float])
    topology: TopologyNote | None = None


@dataclass(frozen=True)
class ChangedScalar:
    """A scalar of an Experiment that was `was` when the saved run started, and is `now`."""

    path: str
    was: _Scalar
    now: _Scalar

    @property
    def kept(self) -> str:
        """The words if the run continues with its own value."""
        return (
            f"`{self.path}` was {self.was} when the run started and is {self.now} in the "
            f"Experiment given now; the run continues with the value in the checkpoint"
        )

    @property
    def taken(self) -> str:
        """The words if the value given now replaces it."""
        return f"`{self.path}` was {self.was}, and is {self.now}"


@dataclass
class Computation:
    """The computation of a run: its steps, its initial scalars, its devices.

    Attributes:
        scalars: the scalars of the Experiment given to `fit`, by path, such as an injected
            learning rate. A resumed run replaces them by those of its checkpoint.
        topology: the devices of that Experiment.
        about: what else stays the same while the run trains.
    """

    scalars: dict[str, _Scalar] = field(default_factory=dict[str, _Scalar])
    topology: dict[str, Any] = field(default_factory=dict[str, Any])
    about: About = field(default_factory=About)
    _steps: dict[str, StepCode] = field(default_factory=dict[str, StepCode])

    def begin_with(self, experiment: Experiment) -> None:
        """Stores the scalars and devices of the Experiment before the first step."""
        self.scalars = scalars_of(experiment)
        self.topology = {**topology(experiment), "words": topology_in_words(experiment)}

    def add_step(self, method: str, stepper: Stepper) -> None:
        """Adds the step of a stepper."""
        self._steps[method] = stepper.traced

    def remove_step(self, method: str) -> None:
        """Removes a step that the run no longer takes."""
        self._steps.pop(method, None)

    @property
    def steps(self) -> Mapping[str, StepCode]:
        """The traced steps by name; the code of those that cannot be traced."""
        return self._steps

    def note(self) -> dict[str, Any]:
        """The computation as JSON."""
        return {
            "steps": {method: _noted(step) for method, step in self._steps.items()},
            "scalars": self.scalars,
            "topology": self.topology,
        }

    def changes(self, saved: Mapping[str, Any], *, same_jax: bool) -> list[str]:
        """The differences from the `note` of a saved run, in words, except for the scalars."""
        return [
            *_changed_devices(saved.get("topology", {}), self.topology),
            *(self._changed_steps(saved.get("steps", {})) if same_jax else []),
        ]

    @property
    def caveats_of_machine(self) -> list[str]:
        """Why this machine may compute other numbers each time, in words."""
        return [] if self.topology["xla_gpu_deterministic_ops"] else [_NOT_DETERMINISTIC]

    def changed_scalars(self, saved: Mapping[str, Any]) -> list["ChangedScalar"]:
        """The scalars given now that are not those at the start of a saved run."""
        was: Mapping[str, _Scalar] = saved.get("scalars", {})
        return [
            ChangedScalar(path, was[path], now)
            for path, now in self.scalars.items()
            if path in was and not is_same(was[path], now)
        ]

    def _changed_steps(self, saved: Mapping[str, Any]) -> list[str]:
        both = [method for method in saved if method in self._steps]
        found: list[str] = []
        for method in both:
            was = _read(saved[method])
            now = _digest(self._steps[method], saved[method]["shapes"])
            if now.digest != was.digest:
                found.append(f"{method} computes something else: {now.changes(was)}")
        return found


def topology_in_words(experiment: Experiment) -> str:
    """The devices of an Experiment, such as "1 device" or "8 devices in 2 processes (split)"."""
    arrays = [leaf for leaf in _tree.leaves(experiment) if isinstance(leaf, jax.Array)]
    count = max((len(leaf.devices()) for leaf in arrays), default=1)
    if count == 1:
        return TopologyNote.words
    processes = jax.process_count()
    within = f" in {processes} processes" if processes > 1 else ""
    is_whole = all(leaf.is_fully_replicated for leaf in arrays)
    return f"{count} devices{within} ({'replicated' if is_whole else 'split'})"


def scalars_of(experiment: Experiment) -> dict[str, _Scalar]:
    """The booleans and floats of an Experiment by path; integers are counts, which change."""
    found = {
        path: leaf
        for path, leaf in _tree.leaves_by_path(experiment)
        if isinstance(leaf, bool | float) or _is_scalar_array(leaf)
    }
    return {path: np.asarray(leaf).item() for path, leaf in jax.device_get(found).items()}


def with_leaves(experiment: Experiment, other: Experiment, paths: Collection[str]) -> Experiment:
    """The Experiment with the leaves of another one at these paths."""
    leaves, structure = _tree.flatten(experiment)
    there = dict(_tree.leaves_by_path(other))
    names = [name for name, _ in _tree.leaves_by_path(experiment)]
    pairs = zip(names, leaves, strict=True)
    new = [there[name] if name in paths else leaf for name, leaf in pairs]
    return _tree.unflatten(structure, new)


def _is_scalar_array(leaf: Any) -> bool:
    if not isinstance(leaf, _ARRAYS) or leaf.ndim > 0:
        return False
    # An array on the devices of other processes cannot be read here.
    readable = getattr(leaf, "is_fully_addressable", True)
    return readable and (leaf.dtype == bool or jax.numpy.issubdtype(leaf.dtype, np.floating))


def is_same(one: _Scalar, other: _Scalar) -> bool:
    return one == other or (one != one and other != other)  # NaN stays NaN


def _noted(step: StepCode) -> dict[str, Any]:
    digest = step.digest()
    shapes = [[str(x.dtype), list(x.shape)] for x in step.shapes]
    return {**vars(digest), "shapes": shapes}


def _read(noted: Mapping[str, Any]) -> StepDigest:
    return StepDigest(noted["digest"], noted["operations"], noted["numbers"])


def _digest(step: StepCode, shapes: Sequence[tuple[str, Sequence[int]]]) -> StepDigest:
    """The digest for the first batch shapes of the saved run, if the step takes them."""
    try:
        saved = tuple(jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for dtype, shape in shapes)
        return step.with_batches(saved).digest()
    except Exception:  # any error of tracing: the step takes other batches now
        return step.digest()


def _changed_devices(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if not was:
        return []
    was = {"words": TopologyNote.words, **was}
    changed = [name for name in now if was.get(name) != now[name]]
    if not changed:
        return []
    if (was["words"], was["kind"]) != (now["words"], now["kind"]):
        return [
            f"it ran on {was['words']} of kind {was['kind']}, and this is {now['words']} of kind "
            f"{now['kind']}, which may round differently"
        ]
    name = changed[0]
    if name == "layout":
        return ["its arrays or batches were split over the devices in another way"]
    return [f"{name} was {was.get(name)}, and is {now[name]}"]
