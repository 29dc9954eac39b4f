"""About: what a checkpoint says of its run that stays the same while it trains."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax

from solstice import _tree
from solstice._experiment import Experiment
from solstice._sources import checksum, fingerprint
from solstice._stored import is_stored, spans_processes
from solstice._types import Batch


@dataclass(frozen=True)
class Start:
    """The start of a run, so that a replay from there is known to be the same.

    Attributes:
        state: a checksum of the Experiment before the first step; "" if no process has all of it.
        batch: the fingerprint of the first batch.
    """

    state: str
    batch: str

    @staticmethod
    def of(experiment: Experiment, batch: Batch) -> "Start":
        """`Start.of(experiment, batch)`."""
        leaves = [leaf for leaf in _tree.leaves(experiment) if is_stored(leaf)]
        if any(map(spans_processes, leaves)):
            return Start("", fingerprint(batch))
        arrays = [
            jax.random.key_data(leaf) if _tree.is_array(leaf) and _tree.is_key(leaf) else leaf
            for leaf in leaves
        ]
        return Start(checksum(arrays), fingerprint(batch))

    def changes(self, now: "Start") -> list[str]:
        """The differences of another start, in words."""
        found = list[str]()
        if self.state and now.state and self.state != now.state:
            found.append(
                "the Experiment given has other numbers than that with which the run started: "
                "make it in the same way, with the same seed"
            )
        if self.batch != now.batch:
            found.append("the first batch is another; if the data set shuffles, give it the seed")
        return found


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
        options: the options of the Trainer that decide which batches a run reads.
        start: the start of the run; None for a branch.
        parent: the run within which a branch starts, or None.
    """

    options: dict[str, Any] = field(default_factory=dict[str, Any])
    start: Start | None = None
    parent: Parent | None = None

    def begun_with(self, experiment: Experiment, batch: Batch) -> "About":
        """The same, with the start of the run."""
        return replace(self, start=Start.of(experiment, batch))
