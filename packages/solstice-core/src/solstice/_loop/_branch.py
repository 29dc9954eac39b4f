"""Branch: a run that starts within another one, in a folder of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

from solstice import checkpoint
from solstice._arguments import whole_or_none
from solstice._callback import Callback
from solstice._experiment import Experiment
from solstice._loop._about import Parent
from solstice._loop._caveats import refused
from solstice._loop._find import find_before, newest_in, newest_of, read_saved
from solstice._loop._resume import SavedRun
from solstice._loop._snapshot import Position
from solstice._record import Snapshot
from solstice._saver import Saver
from solstice.checkpoint import CheckpointError, unheld

Replay = Callable[[SavedRun, int], Snapshot]
"""A saved run at a later step."""


@dataclass(frozen=True)
class Branch:
    """`fit(resume="runs/a", at_step=137, branch="runs/b")`: where a branch starts, and its folder.

    Attributes:
        given: the folder of the parent, or one of its checkpoints.
        step: the step of the parent after which the branch starts; None for its newest checkpoint.
        folder: the folder of the branch.
    """

    given: Path
    step: int | None
    folder: Path

    @staticmethod
    def of(
        resume: str | PathLike[str] | None, at_step: int | None, branch: str | PathLike[str] | None
    ) -> "Branch | None":
        """The branch that these arguments of `fit` ask for; None for another run.

        Raises:
            ValueError: one of the arguments is missing, or the folders are the same.
        """
        step = whole_or_none("at_step", at_step, 0, "training steps")
        if branch is None:
            if step is None:
                return None
            raise ValueError(
                f"at_step={step} starts a branch, which has a folder of its own: write "
                f"`fit(..., resume={_name(resume)!r}, at_step={step}, branch='runs/b')`"
            )
        if resume is None or resume in ("last", "best"):
            raise ValueError(
                f"a branch leaves another run, whose folder it needs: write "
                f"`fit(..., resume='runs/a', branch={str(branch)!r})`; resume is {resume!r}"
            )
        found = Branch(checkpoint.place(resume, "resume"), step, checkpoint.place(branch, "branch"))
        if _is_within(found.folder, found.parent) and _is_within(found.parent, found.folder):
            raise ValueError(
                f"branch={str(branch)!r} is the folder of the parent: give the branch another one, "
                f"such as {f'{branch}-b'!r}"
            )
        return found

    @property
    def parent(self) -> Path:
        """The folder of the parent."""
        return self.given.parent if checkpoint.exists(self.given) else self.given

    def check(self, callbacks: Sequence[Callback]) -> None:
        """Refuses callbacks that would write into the parent, or save elsewhere than here.

        Raises:
            ValueError: there is one.
        """
        for callback in callbacks:
            place = callback.run_folder
            if place is None or _is_within(place, self.folder):
                continue
            writes = "saves" if isinstance(callback, Saver) else "writes"
            line = f"`{type(callback).__name__}({str(self.folder)!r})`"
            advice = line if isinstance(callback, Saver) else f"a place in {str(self.folder)!r}"
            if _is_within(place, self.parent):
                raise ValueError(
                    f"{callback!r} {writes} into the run that this branch leaves, and would change "
                    f"it: give it {advice}"
                )
            if isinstance(callback, Saver):
                raise ValueError(
                    f"{callback!r} saves outside of branch={str(self.folder)!r}, in which the "
                    f"branch is found when it is continued: give it {advice}"
                )

    def saved(self, callbacks: Sequence[Callback], replay: Replay) -> SavedRun:
        """The newest checkpoint of the branch; if it has none, the parent where it starts.

        Raises:
            CheckpointError: the folder has another run, or the parent cannot be replayed.
        """
        own = self._own(callbacks)
        if own is not None:
            return own
        saved = self._before()
        if self.step is not None and saved.position.step < self.step:
            saved = self._replayed(saved, self.step, replay)
        leaves = Parent(str(_real(self.parent)), saved.position.step)
        return replace(saved, position=replace(saved.position, stop=None), leaves=leaves)

    def begin(self, saved: SavedRun, snapshot: Callable[[], Snapshot]) -> None:
        """Saves the start of the branch, so that its folder has all its steps.

        It has no mark of `Checkpoint`, which would remove it, or take it for the newest.
        """
        if saved.leaves is not None:
            at = snapshot()
            checkpoint.save(
                self.folder / f"step-{saved.position.step}", at.experiment, note=at.note
            )

    def _before(self) -> SavedRun:
        step = self.step
        return read_saved(newest_in(self.given)) if step is None else find_before(self.given, step)

    def _own(self, callbacks: Sequence[Callback]) -> SavedRun | None:
        """The newest checkpoint of the branch itself."""
        newest = newest_of([callback for callback in callbacks if isinstance(callback, Saver)])
        newest = newest or newest_in(self.folder)
        if newest == self.folder:
            return None
        found = read_saved(newest)
        parent = found.position.about.parent
        if parent is None or not self._is_from(parent):
            what = (
                "a run that is not a branch"
                if parent is None
                else f"a branch of {parent.folder} at step {parent.step:,}"
            )
            raise CheckpointError(
                f"{self.folder} has the checkpoints of {what}, up to {found.path.name}: give this "
                f"branch a folder of its own, or continue that run with "
                f"`fit(..., resume={str(self.folder)!r})`"
            )
        return found

    def _is_from(self, parent: Parent) -> bool:
        is_at = self.step is None or self.step == parent.step
        return is_at and parent.folder == str(_real(self.parent))

    def _replayed(self, saved: SavedRun, step: int, replay: Replay) -> SavedRun:
        """The parent at a step between two checkpoints."""
        at = saved.position.step
        advice = (
            f". Write the step first, with what the run was given: `solstice.at("
            f"{str(self.parent)!r}, step={step}, experiment=..., train_ds=..., save=True)`"
            + ("" if saved.is_start else f"; or branch at a checkpoint: `at_step={at}`")
        )
        what = f"step {step:,} of {self.parent}"
        exact = refused(what, is_start=saved.is_start, advice=advice)
        try:
            snapshot = replay(replace(saved, judge=exact), step)
        except CheckpointError as error:  # such as of a callback that stops the replay
            lines = "" if str(error).endswith(advice) else advice
            raise CheckpointError(f"{error}{lines}") from None
        # Scalars and callbacks may be others from here on.
        again = refused(f"the batch after {what}", is_start=False, advice=advice)
        position = cast("Position", Position.of(unheld(snapshot.note), _no_rows))

        def replayed(_: Experiment) -> Experiment:
            return snapshot.experiment

        return replace(saved, position=position, state=replayed, judge=again, origin=saved)


def _no_rows(about: object) -> list[Any]:
    raise CheckpointError(f"{about} is not in a file")


def _name(resume: object) -> str:
    return "runs/a" if resume is None else str(resume)


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it."""
    one, other = _real(path), _real(folder)
    return one == other or other in one.parents


def _real(path: Path) -> Path:
    """The path without links and dots; a URL as it was given."""
    return path if checkpoint.is_url(path) else path.resolve()
