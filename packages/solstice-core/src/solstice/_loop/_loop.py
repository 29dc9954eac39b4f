"""The loop: the order of steps, hooks and validation in training, evaluation and prediction."""

from collections.abc import Iterable, Iterator

from solstice._callback import Phase
from solstice._loop._run import Run
from solstice._types import Outputs

_PHASES = tuple(Phase)  # because iterating over an enum is slow, at each step


def train(run: Run) -> None:
    """Trains until the limits of the run are reached, or a callback asks to stop."""
    for _ in run.epochs():
        run.start_epoch()
        with run.calls() as calls:
            for call in calls:  # a compiled call of several steps, which may still be running
                with run.hooks_of(call):
                    for step in run.due_steps(call):
                        run.notify_step(step, Phase.LOG)
                        if not run.goes_on(call):  # another process has stopped
                            break
                        if run.validates_at(step):
                            with run.validation() as validation:
                                evaluate(validation)
                        # After the validation, because they compare its metrics.
                        run.notify_step(step, Phase.MONITOR, Phase.SAVE)
                run.end_call(call)
        run.end_epoch()
        run.log_epoch()
        if run.validates_epoch:
            with run.validation() as validation:
                evaluate(validation)
        run.step_epoch()
        run.notify_epoch_end(Phase.MONITOR, Phase.SAVE)
        run.close_epoch()


def evaluate(run: Run) -> None:
    """Evaluates once, for `run.metrics`. The Experiment of `eval_step` is dropped."""
    run.start_epoch()
    with run.calls() as calls:
        for call in calls:
            with run.hooks_of(call):
                for step in run.due_steps(call):
                    run.notify_step(step, *_PHASES)
            run.end_call(call)
    run.end_epoch()
    run.notify_epoch_end(*_PHASES)


def predict(run: Run) -> Iterator[Outputs]:
    """The outputs of each batch, as NumPy arrays.

    Those of a call are read while the device works on the next one. An error comes after the
    outputs of the batches before it.
    """
    run.start_epoch()
    ready: Iterable[Outputs] = ()
    with run.calls() as calls:
        for call in calls:
            try:
                with run.hooks_of(call):
                    for step in run.due_steps(call):
                        run.notify_step(step, *_PHASES)
            except Exception:
                yield from ready
                yield from run.outputs_of(call)
                raise
            yield from ready
            ready = run.outputs_of(call)
            run.end_call(call)
        yield from ready
    run.end_epoch()
    run.notify_epoch_end(*_PHASES)
