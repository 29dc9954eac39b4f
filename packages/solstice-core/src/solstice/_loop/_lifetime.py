"""The end of a run: by itself, by an error, or by a signal."""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from solstice._console import say_once
from solstice._experiment import Experiment
from solstice._loop._hooks import Hooks
from solstice._loop._run import Run
from solstice._record import Record, changed

_SPLIT = "spans non-addressable"
"""The words of JAX for an array of which a process has only a part."""

_GATHER = (
    "The array is split over several processes, and none has all of it. "
    "`solstice.distributed.gather(tree)` gives NumPy arrays of whole values in every process: call "
    'it in a callback with `processes = "all"`.'
)


@dataclass(frozen=True)
class Ended:
    """A run that has ended, for `trainer.experiment` and `trainer.explain()`.

    A Run is not kept, because its buffers and its state take memory.

    Attributes:
        last: its newest Experiment, or the message if it is lost.
        explanation: the text of `explain`.
        stopped: the reason of the request to stop that ended it, or None.
    """

    last: Experiment | str
    explanation: str
    stopped: str | None = None

    @staticmethod
    def of(run: Run) -> "Ended":
        """`Ended.of(run)`: the newest Experiment of a run, and its explanation."""
        run.state.close()
        last = run.state.lost if run.state.is_lost else run.experiment
        return Ended(last, run.explain(), None if run.hooks.stop is None else str(run.hooks.stop))

    @property
    def experiment(self) -> Experiment:
        """The newest Experiment.

        Raises:
            RuntimeError: a compiled call failed, and the Experiment is lost.
        """
        if isinstance(self.last, str):
            raise RuntimeError(self.last)
        return self.last

    def explain(self) -> str:
        """The text of `Trainer.explain`."""
        return self.explanation


@contextmanager
def reported(hooks: Hooks, at: Record, experiment: Experiment) -> Generator[None, None, None]:
    """Within, a run is prepared: an error calls `on_exception`."""
    try:
        yield
    except BaseException as error:
        hooks.notify_exception(changed(at, given={"experiment": experiment}), error)
        _name_exhausted(error)
        raise


@contextmanager
def ended(run: Run) -> Generator[None, None, None]:
    """Within, a run goes on: its end calls `on_fit_end`, an error `on_exception`."""
    try:
        with _saved_if_asked(run):
            yield
            run.end()
    except GeneratorExit:  # the caller of `predict` stopped reading: not an error
        run.end()
        raise
    except BaseException as error:
        _fail(run, error)
        raise
    finally:
        run.state.kept.settle()
        run.guard.point = None  # it refers to the run, which refers to the guard


def say_stopped(run: Run) -> None:
    """Says where and why a callback ended a training run."""
    at, stop = run.state.at, run.hooks.stop
    if stop is None:
        return
    epochs = f"epoch {at.epoch + 1:,}" + (f" of {at.num_epochs:,}" if at.num_epochs else "")
    reason = f": {stop}" if str(stop) else ", as a callback asked"
    say_once(f"stopped after step {at.step:,}, in {epochs}{reason}")


@contextmanager
def _saved_if_asked(run: Run) -> Generator[None, None, None]:
    """Within, a run that a signal ends is saved as of its newest consistent moment."""
    try:
        yield
    except BaseException:
        guard = run.guard
        if guard.asked is not None and guard.point is not None and not guard.is_urgent:
            moment, guard.point = guard.point(), None
            if moment.step > 0:  # before, there is nothing to save
                run.hooks.notify("on_call_end", lambda: moment)
        raise


def _fail(run: Run, error: BaseException) -> None:
    """Calls `on_exception`, and adds the newest Experiment to the error."""
    if run.state.trains and isinstance(error, Exception):  # not Ctrl-C, which must not wait
        run.state.is_lost = run.stage.stepper.is_lost
    record = run.state.of_run()
    run.hooks.notify_exception(record, error)
    _name_exhausted(error)
    if _SPLIT in str(error):
        error.add_note(_GATHER)
    if run.state.is_lost:
        error.add_note(run.state.lost)
    elif run.state.trains and record.step > 0:
        with suppress(AttributeError):  # an exception may forbid attributes
            error.experiment = record.experiment  # pyright: ignore[reportAttributeAccessIssue]
        error.add_note(
            f"The newest Experiment, after step {record.step:,}, is `trainer.experiment`, "
            f"and `experiment` of this exception."
        )


def _name_exhausted(error: BaseException) -> None:
    """Adds the line of a StopIteration that ended a generator of the Trainer.

    Python turns it into a RuntimeError, whose message does not name the line.
    """
    cause, trace = error.__cause__, None
    if isinstance(cause, StopIteration):
        trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None:
        code = trace.tb_frame.f_code
        error.add_note(
            f"A `next(...)` got StopIteration in {code.co_qualname}, "
            f"{code.co_filename}:{trace.tb_lineno}"
        )
