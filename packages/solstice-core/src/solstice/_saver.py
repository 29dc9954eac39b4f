"""A callback that saves runs, and finds them again."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

from solstice._callback import Callback, Phase


class Saver(Callback, ABC):
    """Save runs in a way of your own, and resume them by name: subclass, with `find`.

    ```python
    class SaveTo(solstice.callbacks.Saver):
        every = 10
        needs = ("snapshot",)

        def on_step_end(self, record):
            if record.mode == "train":
                self.save(record.snapshot)

        def on_call_end(self, record):
            if record.interrupted:  # by SIGTERM or Ctrl-C
                self.save(record.snapshot)

        def save(self, snapshot):
            solstice.checkpoint.save("mine", snapshot.experiment, note=snapshot.note)

        def find(self, which):
            return Path("mine") if solstice.checkpoint.exists("mine") else None
    ```

    `fit(resume="last")` asks every Saver among the callbacks, and takes the run that was saved
    last. A callback that is not a Saver is never asked, whatever methods it has.
    `solstice.callbacks.Checkpoint` is one.
    """

    phase = Phase.SAVE
    has_side_effects = True
    saves = True

    @abstractmethod
    def find(self, which: Literal["last", "best"]) -> Path | None:
        """`saver.find("last")`: the folder of a checkpoint that `fit` can resume, or None.

        Raises:
            ValueError: the best is asked for, and this Saver does not compare. Another one may.
        """
