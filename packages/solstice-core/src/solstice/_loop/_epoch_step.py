"""The call of `Experiment.epoch_step` at the end of a training epoch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from solstice._engine import change_of_state, weak_as
from solstice._errors import ExperimentError
from solstice._experiment import Experiment
from solstice._loop._hooks import Hooks
from solstice._loop._stages import Stage, Stages
from solstice._loop._state import RunState
from solstice._record import Stop


def step_epoch(state: RunState, stage: Stage, stages: Stages, hooks: Hooks) -> Stage:
    """Replaces the Experiment by the result of its `epoch_step`, if the epoch is complete.

    Returns:
        The stage of the new Experiment, which is another one if its step is another program.
    """
    epoch = state.epoch
    if not epoch.is_complete or epoch.ended_by_max_steps:
        return stage
    state.kept.settle()  # because the state changes
    old = state.experiment
    new = _stepped(old, state.metrics_of_epoch())
    if new is not old:
        stage = _stage_of(old, weak_as(new, old), stage, stages, hooks)
        state.follow(stage)
    epoch.before_end = None
    if _is_finished(new):
        hooks.request(Stop(f"{type(new).__name__}.is_finished, after epoch {state.at.epoch + 1}"))
    return stage


def _stepped(old: Experiment, metrics: Mapping[str, Any]) -> Experiment:
    """The checked result of `epoch_step`."""
    name = f"{type(old).__name__}.epoch_step"
    try:
        new: Any = old.epoch_step(metrics)
    except (Stop, StopIteration) as error:
        raise ExperimentError(
            f"{name} raised {type(error).__name__}. To end the run, return an Experiment whose "
            f"property `is_finished` is True"
        ) from error
    except Exception as error:
        error.add_note(f"{name} was given these metrics: {', '.join(metrics) or 'none'}")
        raise
    if type(new) is not type(old):
        raise ExperimentError(
            f"{name} must return the next Experiment, a {type(old).__name__}; it returned "
            f"{new!r:.60}. Write `return solstice.replace(self, ...)`, or `return self`"
        )
    return new


def _stage_of(
    old: Experiment, new: Experiment, stage: Stage, stages: Stages, hooks: Hooks
) -> Stage:
    """The stage that goes on with the new Experiment."""
    if stage.stepper.take_state(new):
        return stage
    try:
        return stages.follow(stage, new, hooks)
    except Exception as error:
        error.add_note(
            f"This is the step of the Experiment that {type(new).__name__}.epoch_step returned: "
            f"{change_of_state(old, new)}"
        )
        raise


def _is_finished(experiment: Experiment) -> bool:
    value: Any = experiment.is_finished
    if np.ndim(value) > 0:
        raise ExperimentError(
            f"{type(experiment).__name__}.is_finished must be True or False; it is an array of "
            f"shape {list(np.shape(value))}: write `return bool(... .all())`"
        )
    return bool(value)
