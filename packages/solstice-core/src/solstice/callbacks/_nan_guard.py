"""NaNGuard: ends a run when its arrays become NaN or infinite."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from solstice import _tree
from solstice._arguments import whole
from solstice._callback import Callback, Phase
from solstice._console import warn
from solstice._experiment import Experiment
from solstice._finite import nonfinite, nonfinite_rows
from solstice._record import Record
from solstice._schema import read
from solstice.callbacks._members import population_of

_Place = tuple[str, int | None]
"""The path of an array, and the member of a population whose part of it is meant."""


@dataclass(frozen=True)
class _State:
    lost: list[int]


class NaNGuard(Callback):
    """`NaNGuard(every=100)`: end a run when its weights become NaN or infinite.

    Every `every` steps it checks all arrays of the Experiment that were finite at the start of the
    run, and reads back one number per array. It runs before callbacks that save. With a
    `Checkpoint` at the same steps, no bad checkpoint is written, and `fit(..., resume="last")`
    returns to the last good one, for example with a smaller learning rate. To skip non-finite
    updates and continue, use `solstice.compat.skip_nonfinite`.

    A member of a `Population` cannot change the others, so a warning names it once and the run
    continues; it ends when all members are lost.

    Args:
        every: training steps from one check to the next, 1 or more. Each reads all arrays.

    Raises:
        ValueError: `every` is not a whole number of 1 or more.
        FloatingPointError: in training, an array is NaN or infinite; the message names it.
    """

    phase = Phase.MONITOR
    modes = ("train",)
    needs = ("experiment",)

    def __init__(self, *, every: int = 100) -> None:
        self.every = whole("every", every, 1, "steps")
        self._expected: set[_Place] = set()
        self._lost: set[int] = set()

    def on_fit_start(self, record: Record) -> None:
        """Notes arrays that are not finite at the start, such as an initial best loss of inf."""
        self._expected, self._lost = set(_bad(record.experiment)), set()

    def on_step_end(self, record: Record) -> None:
        """Raises a FloatingPointError if an array has become NaN or infinite."""
        self._look(record)

    def on_epoch_end(self, record: Record) -> None:
        """Checks again at the end of an epoch, because it may be saved."""
        self._look(record)

    def state_dict(self) -> dict[str, Any]:
        """The members that are lost."""
        return {"lost": sorted(self._lost)} if self._lost else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of `state_dict` in a resumed run."""
        self._lost = {*read(_State, state, "NaNGuard.state_dict()").lost}

    def _look(self, record: Record) -> None:
        bad = [place for place in _bad(record.experiment) if place not in self._expected]
        members = {member for _, member in bad if member is not None}
        is_run = any(member is None for _, member in bad)
        if is_run or (members and {*_ids(record.experiment)} <= self._lost | members):
            raise FloatingPointError(
                f"{self._since(record)}, {_named(bad)} became NaN or infinite"
                f"{'' if is_run else ' in all members'}. {_CURE}. With a FlightRecorder among the "
                f"callbacks, `solstice.replay` shows the step"
            )
        new = members - self._lost
        self._lost |= new
        if new:
            warn(
                f"{self._since(record)}, members {_listed(new)} of the population became NaN or "
                f"infinite, and the others train on. {_CURE}",
                stacklevel=2,
            )

    def _since(self, record: Record) -> str:
        return f"at step {record.step:,}, or up to {self.every:,} before"


_CURE = (
    "Lower the learning rate, clip the gradient, or skip such updates: "
    "`solstice.compat.skip_nonfinite(optimizer)`"
)


def _bad(experiment: Experiment) -> list[_Place]:
    """The arrays with NaN or infinity."""
    population = population_of(experiment)
    if population is None:
        return [(path, None) for path in nonfinite(experiment)]
    ids = _ids(population)
    return [(path, ids[row]) for path, row in nonfinite_rows(population.members)]


def _ids(experiment: Any) -> list[int]:
    """The numbers of the members of a population."""
    return _tree.to_numpy(experiment.ids).tolist()


def _named(bad: Iterable[_Place]) -> str:
    paths = list(dict.fromkeys(path for path, _ in bad))
    return ", ".join(f"`{path}`" for path in paths[:5]) + (" ..." if paths[5:] else "")


def _listed(members: Iterable[int]) -> str:
    first = sorted(members)
    return ", ".join(map(str, first[:10])) + (" ..." if first[10:] else "")
