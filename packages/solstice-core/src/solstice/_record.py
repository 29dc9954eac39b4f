"""The record of one moment of a run, and the request to stop it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from solstice._engine._compiles import Compilation
from solstice._engine._times import Times
from solstice._experiment import Experiment
from solstice._types import Batch, Mode, Outputs


class Stop(Exception):  # noqa: N818, a request and no error
    """`raise solstice.Stop("diverged")` in any hook of a callback ends the run.

    It is a request, not a crash: every other callback still hears of the same moment, the epoch
    under way is closed with the metrics so far, `on_fit_end` runs and `fit` returns. Raised at
    the end of a training epoch, it takes effect after that epoch's validation.
    """


@dataclass(frozen=True)
class Snapshot:
    """`record.snapshot`: a run at one moment, which `Trainer.fit(resume=...)` goes on from.

    ```python
    snapshot = record.snapshot
    solstice.checkpoint.save(path, snapshot.experiment, note=snapshot.note)
    ```

    Attributes:
        experiment: the Experiment, whose arrays stay valid while the run goes on.
        note: the rest, as `checkpoint.save` takes it: step, epoch, position in the epoch, where
            the data set stands, metrics of the epoch so far, what callbacks remember.
    """

    experiment: Experiment
    note: dict[str, Any]


class Lazy:
    """Stands in a record for what is made when it is read, since that costs something."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a callback is told at one moment of a run.

    At a step, `outputs`, `batch`, `experiment`, `metrics` and `snapshot` are there for the callback
    whose `needs` names them; reading one that was not asked for raises an AttributeError.

    Attributes:
        mode: "train", "val", "test" or "predict".
        step: training steps taken since `fit` began; 0 in a run that does not train.
        epoch: index of the epoch, from 0.
        epoch_step: steps taken in this epoch of this mode.
        steps_per_epoch: how many there will be, where the data set has a length; else None.
        num_epochs: how many epochs were asked for; None when only `max_steps` bounds the run.
        num_examples: examples seen in this epoch of this mode.
        has_validation: whether `fit` was given a validation set.
        interrupted: whether SIGTERM or Ctrl-C ends the run at this moment.
        times: where the time of training has gone so far.
        given: what this record holds of "outputs", "batch", "experiment", "metrics" and "snapshot".
    """

    mode: Mode
    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    steps_per_epoch: int | None = None
    num_epochs: int | None = None
    num_examples: int = 0
    has_validation: bool = False
    interrupted: bool = False
    times: Times = field(default_factory=Times, repr=False)
    given: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def experiment(self) -> Experiment:
        """The Experiment at this moment. It stays valid after the hook returns."""
        return self._get("experiment")

    @property
    def outputs(self) -> Outputs:
        """What the step returned beside the Experiment (at a step only), as NumPy arrays."""
        return self._get("outputs")

    @property
    def batch(self) -> Batch:
        """The batch of this step (at a step only), as NumPy arrays."""
        return self._get("batch")

    @property
    def metrics(self) -> dict[str, Any]:
        """Computed metrics by name: Python numbers for scalars, NumPy arrays for the rest.

        At the end of an epoch they cover the epoch; at a step, the steps since this callback's
        `on_step_end` was last called; at the end of a call, the epoch so far, which is read back
        from the device if you ask. In training, what callbacks `measure` is among them.
        """
        return self._get("metrics")

    @property
    def snapshot(self) -> Snapshot:
        """The run at this moment, which `Trainer.fit(resume=...)` can go on from.

        It is there at a training step for those that need it, at the end of a training epoch, and
        at the end of a call. Making it costs a copy of the Experiment's arrays.
        """
        return self._get("snapshot")

    @property
    def compilation(self) -> Compilation:
        """What was compiled, and why; in `on_compile` only."""
        return self._get("compilation")

    def _get(self, name: str) -> Any:
        if name not in self.given:
            raise AttributeError(
                f"this record has no {name!r}: it is there at the moments that have one, and at "
                f'a step for a callback that asks for it: write `needs = ("{name}",)` in its class'
            )
        value = self.given[name]
        return value.make() if isinstance(value, Lazy) else value


def changed(record: Record, **values: Any) -> Record:
    """`dataclasses.replace`, four times as fast: a record is made at each step that is watched."""
    new = object.__new__(Record)
    new.__dict__.update(record.__dict__, **values)
    return new
