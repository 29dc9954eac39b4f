"""The text of `Trainer.explain`: how a run is cut into calls, and why."""

from solstice._callback import Callback
from solstice._engine._eager import EagerStepper
from solstice._engine._feed import StagingBuffers
from solstice._engine._pace import SECONDS_PER_CALL
from solstice._engine._step import Stepper
from solstice._run._cadence import cadence_of, watchers_between, watchers_within
from solstice._run._callbacks import CallbackList
from solstice.data._source import Source


def explanation(
    mode: str,
    stepper: Stepper | EagerStepper,
    slots: StagingBuffers,
    callbacks: CallbackList,
    source: Source,
) -> str:
    """The cuts of a run into compiled calls, with the reasons."""
    cadence = cadence_of(callbacks.callbacks, stepper.steps_per_block)
    many = stepper.steps_per_block > stepper.steps_per_call
    most = (
        f"1 step a call, up to {stepper.steps_per_block} calls at once"
        if many
        else f"up to {stepper.steps_per_call} steps a call"
    )
    lines = [f"{mode}: {most}: {stepper.reason}"]
    lines += [
        f"  a call ends {_when(callback)}: {type(callback).__name__} looks between steps"
        for callback in watchers_between(callbacks.callbacks)
    ]
    longest = max(cadence.room(position) for position in range(min(cadence.period, 1000)))
    lines.append(f"  most calls at once: {longest}" if many else f"  longest call: {longest} steps")
    if slots.room < longest:
        lines.append(
            f"  {'calls at once' if many else 'calls'} have at most {slots.room} steps for now, "
            f"to take at most {SECONDS_PER_CALL} s, because Ctrl-C waits for their end"
        )
    lines.append(f"  compiled programs: {slots.num_shapes}, one for each shape of batch")
    lines.append(f"  state: {stepper.state_bytes:,} bytes, {_reuse(stepper, callbacks)}")
    lines.append(f"  memory for batches: {slots.nbytes:,} bytes")
    lines.append(f"  {source.name} can be continued within an epoch {source.continues}")
    return "\n".join(lines)


def _when(callback: Callback) -> str:
    return "at every step" if callback.every == 1 else f"at every {callback.every} steps"


def _reuse(stepper: Stepper | EagerStepper, callbacks: CallbackList) -> str:
    if stepper.works_in_place:
        return "donated: each call reuses the memory of its inputs"
    names = [type(c).__name__ for c in watchers_within(callbacks.callbacks)]
    if not names:
        return "not donated: evaluation does not change the Experiment"
    return f"not donated: {', '.join(names)} may stop the run at a step within a call"
