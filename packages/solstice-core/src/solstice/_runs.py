"""Runs: the newest run of a Trainer, and the training run around it."""

from collections.abc import Generator
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
    """

    def __init__(self) -> None:
        self.newest: Run | Ended | None = None
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

    @contextmanager
    def running(self, run: Run) -> Generator[None, None, None]:
        """Within, a run is the newest of this Trainer."""
        outer, before = self._training, self.newest
        self.newest, self._training = run, run if run.state.trains else outer
        try:
            with ended(run):
                yield
        except BaseException:
            if not run.has_begun:  # a run that failed before its first epoch
                self.newest = before or run
            raise
        finally:
            if self.newest is run:
                self.newest = Ended.of(run)
            if outer is not None:  # a callback called the Trainer in the middle of `fit`
                self.newest = outer
            self._training = outer
            run.stages.close()
