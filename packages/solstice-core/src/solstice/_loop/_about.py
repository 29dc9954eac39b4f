"""About: what a checkpoint says of its run that stays the same while it trains."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import jax

from solstice import _tree
from solstice._experiment import Experiment
from solstice._sources import checksum, fingerprint
from solstice._stored import is_stored
from solstice._types import Batch

_MOST_BYTES = 2**26
"""Reading them takes about 0.1 s, once in a saved run."""


@dataclass(frozen=True)
class Start:
    """The start of a run, so that a replay from there is known to be the same.

    Attributes:
        state: a checksum of the Experiment before the first step: of its arrays up to 64 MiB
            together, the smallest first.
        batch: the fingerprint of the first batch.
        steps: the digests of the steps, if an `epoch_step` may change them.
    """

    state: str
    batch: str
    steps: dict[str, Any] = field(default_factory=dict[str, Any])

    @staticmethod
    def of(experiment: Experiment, batch: Batch, steps: Mapping[str, Any] | None = None) -> "Start":
        """`Start.of(experiment, batch)`."""
        return Start(checksum(_small_arrays(experiment)), fingerprint(batch), dict(steps or {}))

    def changes(self, now: "Start") -> list[str]:
        """The differences of another start, in words."""
        found = list[str]()
        if self.state != now.state:
            found.append(
                "the Experiment given has other numbers than that with which the run started: "
                "make it in the same way, with the same seed"
            )
        if self.batch != now.batch:
            found.append("the first batch is another; if the data set shuffles, give it the seed")
        return found


def _small_arrays(experiment: Experiment) -> list[Any]:
    """The arrays to read from the device, of those that this process has as a whole."""
    arrays = [
        jax.random.key_data(leaf) if _tree.is_array(leaf) and _tree.is_key(leaf) else leaf
        for leaf in _tree.leaves(experiment)
        if is_stored(leaf) and getattr(leaf, "is_fully_addressable", True)
    ]
    sizes = [getattr(leaf, "nbytes", 0) for leaf in arrays]
    order = sorted(range(len(arrays)), key=lambda index: (sizes[index], index))
    totals = accumulate(sizes[index] for index in order)
    return [arrays[i] for i, total in zip(order, totals, strict=True) if total <= _MOST_BYTES]


@dataclass(frozen=True)
class Parent:
    """The run that a branch has left.

    Attributes:
        folder: the folder of that run.
        step: the step of it after which the branch starts.
        changes: in what the branch differs from it, in words.
    """

    folder: str
    step: int
    changes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class About:
    """What stays the same while a run trains.

    Attributes:
        id: random text; a resumed run keeps it.
        options: the options of the Trainer that decide which batches a run reads.
        start: the start of the run; None for a branch.
        parent: the run within which a branch starts, or None.
    """

    id: str = ""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    start: Start | None = None
    parent: Parent | None = None

    @staticmethod
    def new(options: Mapping[str, Any]) -> "About":
        """That of a new run."""
        return About(uuid.uuid4().hex[:12], dict(options))

    def begun_with(
        self, experiment: Experiment, batch: Batch, steps: Mapping[str, Any] | None = None
    ) -> "About":
        """The same, with the start of the run."""
        return replace(self, start=Start.of(experiment, batch, steps))
