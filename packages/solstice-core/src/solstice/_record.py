"""Record: one moment of a run as callbacks see it, and its fields; Stop, a request to end it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from solstice._digests import Digests
from solstice._experiment import Experiment
from solstice._types import Batch, Mode, Outputs

_REASONS = 5
"""The most reasons of a compilation in a message."""


class Stop(Exception):  # noqa: N818, a request and no error
    """`raise solstice.Stop("diverged")` in any hook of a callback ends the run.

    It is a request, not a crash: the other callbacks still get the same moment, the epoch
    closes with the metrics so far, `on_fit_end` runs and `fit` returns. Raised at the end of a
    training epoch, or at a step with validation, it takes effect after the validation.
    """


@dataclass(frozen=True)
class Snapshot:
    """`record.snapshot`: a run at one moment; `Trainer.fit(resume=...)` continues from it.

    ```python
    snapshot = record.snapshot
    solstice.checkpoint.save(path, snapshot.experiment, note=snapshot.note)
    ```

    Attributes:
        experiment: the Experiment; its arrays stay valid while the run continues.
        note: the rest, for `checkpoint.save`: step, epoch, position in the epoch and in the data
            set, metrics of the epoch so far, states of the callbacks.
    """

    experiment: Experiment
    note: dict[str, Any]

    def without_callbacks(self) -> "Snapshot":
        """`snapshot.without_callbacks()`: the run for other callbacks and other validation data.

        A run that resumes from it restores no state of callbacks.
        """
        run = self.note["run"]
        data = {"dict": [[k, v] for k, v in run["data"]["dict"] if k != "validation"]}
        nothing: dict[str, Any] = {"dict": []}
        none = {"callbacks": nothing, "owners": nothing, "data": data}
        return Snapshot(self.experiment, {**self.note, "run": {**run, **none}})


@dataclass
class Times:
    """`record.times`: seconds of training since the start of the run, by activity.

    The object changes as the run continues: copy the numbers that you need. Callbacks and
    validation are not included. The device works while the host does other things, so `device` is
    only the time that the host waits. If it is near 0, the host is the slower of the two.

    Attributes:
        data: waiting for the data set.
        copy: copying batches into the staging buffers, and checking them.
        dispatch: calling compiled programs, with their compilation.
        device: waiting for the device.
    """

    data: float = 0.0
    copy: float = 0.0
    dispatch: float = 0.0
    device: float = 0.0


@dataclass(frozen=True)
class Compilation:
    """`record.compilation`: a compiled program, and the reason for its compilation.

    Attributes:
        name: the name of the step, such as "Classifier.train_step".
        seconds: the time of the compilation.
        reasons: the differences from the most similar earlier program, one line per leaf; empty
            for the first program.
    """

    name: str
    seconds: float
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        more = len(self.reasons) - _REASONS
        shown = [*self.reasons[:_REASONS], *([f"and {more} more"] if more > 0 else [])]
        why = "; ".join(shown) or "the first of its kind"
        return f"compiled {self.name} in {self.seconds:.2f} s: {why}"


class Lazy:
    """A field of a record that is computed each time it is read, because it is costly."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def make(self) -> Any:
        """The value."""
        return self._make()


class Once(Lazy):
    """A field of a record that is computed when it is first read."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__(make)
        self._made: list[Any] = []  # the value, once it is computed

    def make(self) -> Any:
        """The value. An error is raised again at the next read."""
        if not self._made:
            self._made.append(self._make())
            self._make = _never  # because the function may hold the run
        return self._made[0]

    @property
    def is_made(self) -> bool:
        """Whether the value has been computed."""
        return bool(self._made)

    def fork(self) -> "Once":
        """The same field for another owner, who may change the value."""
        return Once(partial(copy.copy, self._made[0]) if self._made else self._make)

    def __reduce__(self) -> tuple[Any, ...]:
        return made, (self.make(),)  # a copy, or a pickle, has the value


def _never() -> None:
    """Replaces the function of a field that has been computed."""


def made(value: Any) -> Once:
    """A field that has been computed."""
    field = Once(lambda: value)
    field.make()
    return field


@dataclass(frozen=True, kw_only=True)
class Record:
    """`def on_step_end(self, record): ...`: one moment of a run, the argument of each hook.

    At a step, a record has those of `outputs`, `batch`, `experiment`, `metrics`, `snapshot` and
    `digests` that the callback lists in `needs`. Reading another one raises an AttributeError.

    Attributes:
        mode: "train", "val", "test" or "predict".
        step: training steps since the start of the run, including those before a resume; 0 in a
            run that does not train.
        epoch: index of the epoch, from 0.
        epoch_step: steps in this epoch of this mode so far.
        steps_per_epoch: steps in the whole epoch; None if the data set has no length.
        num_epochs: epochs in the whole run; None if only `max_steps` ends the run.
        num_examples: examples in this epoch of this mode so far.
        has_validation: whether `fit` has a validation set.
        interrupted: whether SIGTERM or Ctrl-C ends the run at this moment.
        times: the time spent on data, on calls and on the device so far.
        hyperparameters: those of the Trainer, as values of JSON.
        given: the fields of this record, of "outputs", "batch", "experiment", "metrics",
            "snapshot", "digests" and "compilation"; those of `Lazy` are computed when they are
            read.
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
    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    given: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def experiment(self) -> Experiment:
        """The Experiment at this moment. It stays valid after the hook returns."""
        return self._get("experiment")

    @property
    def outputs(self) -> Outputs:
        """The step's outputs, its second result, as NumPy arrays (at a step only)."""
        return self._get("outputs")

    @property
    def batch(self) -> Batch:
        """The batch of this step, as NumPy arrays (at a step only)."""
        return self._get("batch")

    @property
    def metrics(self) -> dict[str, Any]:
        """Computed metrics by name: Python numbers for scalars, NumPy arrays otherwise.

        At the end of an epoch they cover the epoch; at a step, the steps since the previous call
        of this callback's `on_step_end`; at the end of a call, the epoch so far, which is read
        from the device only if you read this. In training they include the values that callbacks
        `measure`. They are computed when you first read this, now or later.
        """
        return self._get("metrics")

    @property
    def snapshot(self) -> Snapshot:
        """The run at this moment; `Trainer.fit(resume=...)` can continue from it.

        Available at a training step if it is in `needs`, at the end of a training epoch, and at
        the end of a call in training. To keep it costs a copy of the Experiment's arrays.
        """
        return self._get("snapshot")

    @property
    def digests(self) -> Digests:
        """A 32-bit number for the bits of each array of the batch, the outputs and the state.

        In training, if "digests" is in `needs`: of the steps of the newest call up to this moment;
        before the first step of an epoch, of the state. In several processes, read it in all or in
        none.
        """
        return self._get("digests")

    @property
    def compilation(self) -> Compilation:
        """The compiled program and the reason for its compilation; in `on_compile` only."""
        return self._get("compilation")

    def only(self, *names: str) -> "Record":
        """`self.records.append(record.only("metrics"))`: the record with some of its fields.

        Keep such a record to compute metrics later. To keep a whole record costs a copy of the
        Experiment, which the fields `experiment` and `snapshot` refer to.
        """
        given = {name: self.given[name] for name in names if name in self.given}
        forks = {n: v.fork() if isinstance(v, Once) else v for n, v in given.items()}
        return changed(self, given=forks)

    def is_computed(self, name: str) -> bool:
        """`record.is_computed("metrics")`: whether a field is here, and reading it is free."""
        value = self.given.get(name)
        if isinstance(value, Once):
            return value.is_made
        return name in self.given and not isinstance(value, Lazy)

    def _get(self, name: str) -> Any:
        if name not in self.given:
            raise AttributeError(
                f"this record has no {name!r}. {_cure(name)}. `help(solstice.Callback)` has the "
                f"fields of each hook"
            )
        value = self.given[name]
        return value.make() if isinstance(value, Lazy) else value


def _cure(name: str) -> str:
    """Advice for a field that a record does not have."""
    if name == "compilation":
        return "Only `on_compile` has it"
    return f'For the hooks of steps, write `needs = ("{name}",)` in the class of the callback'


def changed(record: Record, **values: Any) -> Record:
    """`dataclasses.replace`, four times as fast, because callbacks get a record at each step."""
    new = object.__new__(Record)
    new.__dict__.update(record.__dict__, **values)
    return new
