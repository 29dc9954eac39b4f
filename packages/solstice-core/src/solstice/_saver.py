"""Saver: a callback that saves runs, and finds the saved ones for `fit(resume="last")`."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

from solstice._callback import Callback, Phase


class Saver(Callback, ABC):
    """Save runs in your own way, and resume them by "last" or "best": subclass, with `find`.

    ```python
    class SaveTo(solstice.callbacks.Saver):
        every = 10
        modes = ("train",)
        needs = ("snapshot",)

        def on_step_end(self, record):
            self.save(record.snapshot)

        def on_call_end(self, record):
            if record.interrupted:  # by SIGTERM or Ctrl-C
                self.save(record.snapshot)

        def save(self, snapshot):
            solstice.checkpoint.save("mine", snapshot.experiment, note=snapshot.note)

        def find(self, which):
            return Path("mine") if solstice.checkpoint.exists("mine") else None
    ```

    `fit(resume="last")` calls `find` of every Saver among the callbacks, and resumes the run that
    was saved last. Other callbacks are not asked, even if they have a method `find`.
    `solstice.callbacks.Checkpoint` is a Saver.
    """

    phase = Phase.SAVE
    has_side_effects = True
    saves = True

    @abstractmethod
    def find(self, which: Literal["last", "best"]) -> Path | None:
        """`saver.find("last")`: the folder of a checkpoint that `fit` can resume, or None.

        Raises:
            ValueError: `which` is "best", and this Saver does not compare runs. The Trainer then
                uses those that do.
        """
