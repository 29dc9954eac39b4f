"""The text of `Trainer.explain`: how a run is cut into calls, and why."""

from solstice import _tree
from solstice._callback import Callback
from solstice._engine import SECONDS_PER_CALL, StagingBuffers, Stepper
from solstice._loop._cadence import cadence_of, watchers_between, watchers_within
from solstice._loop._hooks import Hooks
from solstice._loop._stages import Stage
from solstice._memory import small_bytes


def explanation(mode: str, stage: Stage, hooks: Hooks, every: int | None) -> str:
    """The cuts of a run into compiled calls, with the reasons.

    Args:
        mode: the mode of the run.
        stage: its data set, stepper and buffers.
        hooks: its callbacks.
        every: the training steps from one validation within an epoch to the next, or None.
    """
    stepper, slots, callbacks = stage.stepper, stage.buffers, hooks.listeners
    sizes = stepper.sizes
    cadence = cadence_of(callbacks, sizes.steps_per_block, every)
    many = sizes.steps_per_block > sizes.steps_per_call
    most = (
        f"1 step a call, up to {sizes.steps_per_block} calls at once"
        if many
        else f"up to {sizes.steps_per_call} steps a call"
    )
    lines = [f"{mode}: {most}: {sizes.reason}"]
    lines += [
        f"  a call ends {_when(callback.every)}: {type(callback).__name__} looks between steps"
        for callback in watchers_between(callbacks)
    ]
    lines += [f"  a call ends {_when(every)}: validation"] if every else []
    # Not over the whole period: it is the product of coprime cadences.
    longest = max(cadence.room(position) for position in range(min(cadence.period, 1000)))
    lines.append(f"  most calls at once: {longest}" if many else f"  longest call: {longest} steps")
    if slots.sizes.room < longest:
        lines.append(
            f"  {'calls at once' if many else 'calls'} have at most {slots.sizes.room} steps for "
            f"now, to take at most {SECONDS_PER_CALL} s, because Ctrl-C waits for their end"
        )
    lines.append(f"  compiled programs: {slots.num_shapes}, one for each shape of batch")
    lines.append(f"  state: {stepper.state_bytes:,} bytes, {_reuse(stepper, callbacks)}")
    lines += [f"  {line}" for line in stepper.notes]
    lines += [f"  {line}" for line in _held(stepper)] if mode == "train" else []
    lines.append(f"  {_memory(stage)}")
    lines += _host(stage)
    lines.append(f"  {stage.source.name} can be continued within an epoch {stage.source.continues}")
    return "\n".join(lines)


def _memory(stage: Stage) -> str:
    """The memory of the batches."""
    data, buffers = stage.source.arrays, stage.buffers
    if isinstance(buffers, StagingBuffers):
        return f"memory for batches: {buffers.nbytes:,} bytes"
    nbytes = sum(x.nbytes for x in _tree.leaves(stage.arrays))
    why = "by on_device=True" if data and data.on_device else f"small: at most {small_bytes():,}"
    return f"{stage.source.name} is on the device: {nbytes:,} bytes, put there once ({why})"


def _host(stage: Stage) -> list[str]:
    """The reason why arrays that might be on the device are fed from the host."""
    data = stage.source.arrays
    if data is None or data.on_device is False or stage.arrays is not None:
        return []
    why = data.why_on_host or (
        "the step cannot be compiled"
        if stage.stepper.needs_batches
        else "the Experiment lies on several devices"
    )
    return [f"  {stage.source.name} is fed from the host: {why}"]


def _when(every: int | None) -> str:
    return "at every step" if every == 1 else f"at every {every} steps"


def _held(stepper: Stepper) -> list[str]:
    """The states in memory, and why."""
    owners = stepper.ownership
    if not owners.gives_up:
        lines = [
            "held: the newest state, and the Experiment given to `fit`, which stays valid; with "
            "`donate=True` it is given up"
        ]
    else:
        lines = ["held: the newest state alone, since `donate=True` gave the old Experiment up"]
    if owners.gives_up and owners.at_start:
        lines.append(f"copied at the start: {owners.at_start:,} bytes that other objects hold too")
    if owners.times:
        lines.append(f"copied {owners.times:,} times: callbacks kept arrays of the state")
    return lines


def _reuse(stepper: Stepper, callbacks: list[Callback]) -> str:
    if stepper.works_in_place:
        return "donated: each call reuses the memory of its inputs"
    names = [type(c).__name__ for c in watchers_within(callbacks)]
    if not names:
        return "not donated: evaluation does not change the Experiment"
    return f"not donated: {', '.join(names)} may stop the run at a step within a call"
