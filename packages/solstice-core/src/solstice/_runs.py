"""Runs: the newest run of a Trainer, and the training run around it."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from solstice._engine import BuffersByKind
from solstice._experiment import Experiment
from solstice._loop import Ended, Hooks, Run, ended, reported
from solstice._record import Record


class Runs:
    """The runs of a Trainer. A callback may start further ones in the middle of `fit`.

    Attributes:
        newest: the newest run, also after its end; None before the first.
        memory: staging buffers of earlier runs, by step.
        after_evaluation: called after an evaluation, for `run.json` of the newest training run.
    """

    def __init__(self) -> None:
        self.newest: Run | Ended | None = None
        self.after_evaluation: list[Callable[[], None]] = []
        self.memory: dict[str, BuffersByKind] = {}
        self._training: Run | None = None

    @contextmanager
    def preparing(
        self, hooks: Hooks, at: Record, experiment: Experiment
    ) -> Generator[None, None, None]:
        """Within, a run is prepared. If that fails, an earlier run stays the newest."""
        try:
            with reported(hooks, at, experiment):
                yield
        except BaseException:
            self.newest = self.newest or Ended(experiment, "the run ended before its first step")
            raise

    def check_idle(self) -> None:
        """Refuses a `fit` within `fit`, whose rows and callbacks would be those of both runs.

        Raises:
            RuntimeError: a training run goes on.
        """
        if self._training is not None:
            raise RuntimeError(
                "this Trainer is training already, and its history and callbacks belong to that "
                "run: a callback that trains needs its own, `solstice.Trainer().fit(...)`"
            )

    @contextmanager
    def running(self, run: Run) -> Generator[None, None, None]:
        """Within, a run goes on. It is the newest, unless it is an evaluation within `fit`.

        Runs need not end in the order of their start, because `predict` is an iterator.
        """
        before = self.newest
        if self._training is None:
            self.newest = run
        if run.state.trains:
            self._training = run
        try:
            with ended(run):
                yield
        except BaseException:
            # A run that failed before its first epoch leaves `trainer.experiment` unchanged.
            if not run.has_begun and before is not None and self.newest is run:
                self.newest = before
            raise
        finally:
            if self.newest is run:
                self.newest = Ended.of(run)
            if self._training is run:
                self._training = None
            run.stages.close()
