"""The steps at which the hooks of callbacks are due."""

from dataclasses import dataclass
from operator import index
from typing import cast

from solstice._callback import Callback, Phase

AT_STEPS = ("on_step_start", "on_step_end")
"""The hooks of steps, which `every` is for."""


@dataclass(frozen=True)
class Due:
    """The steps at which hooks are due, as pairs of a callback and its `every`.

    Attributes:
        at_start: the hooks `on_step_start` that this process calls.
        at_end: the hooks `on_step_end` that it calls, by the number of their phase.
        ends: the cadences of `on_step_end` in any process.
        saving: those of callbacks of the phase SAVE.
        remembering: those of callbacks whose state a saved run has. Reading metrics empties an
            accumulator of the callback, which is such a state too.
    """

    at_start: list[tuple[Callback, int]]
    at_end: list[list[tuple[Callback, int]]]
    ends: tuple[int, ...]
    saving: tuple[int, ...]
    remembering: tuple[int, ...]


def due_steps(listeners: list[Callback], called: list[Callback]) -> Due:
    """The steps of the callbacks of a run, and of those that this process calls."""
    starts, ends = (at_cadence(hook, listeners) for hook in AT_STEPS)
    called_at_end = at_cadence("on_step_end", called)
    return Due(
        at_start=at_cadence("on_step_start", called),
        # By the number of the phase: the hash of an enum is slow, at each step.
        at_end=[[at for at in called_at_end if at[0].phase == p] for p in Phase],
        ends=tuple({every for _, every in ends}),
        saving=tuple({every for callback, every in ends if callback.phase == Phase.SAVE}),
        remembering=tuple(
            {
                every
                for callback, every in [*starts, *ends]
                if "metrics" in callback.needs or overrides_hook(callback, "state_dict")
            }
        ),
    )


def overrides_hook(callback: Callback, hook: str) -> bool:
    """Whether the callback overrides `hook`."""
    method = getattr(callback, hook)  # also one that was set on the instance
    return getattr(method, "__func__", None) is not getattr(Callback, hook)


def listens_to_steps(callback: Callback, hook: str) -> bool:
    """Whether the Trainer ever calls `hook`, a hook of steps."""
    return callback.every is not None and overrides_hook(callback, hook)


def at_cadence(hook: str, callbacks: list[Callback]) -> list[tuple[Callback, int]]:
    """The callbacks with a hook of steps, and the cadence of each."""
    heard = [c for c in callbacks if listens_to_steps(c, hook)]
    return [(c, index(cast("int", c.every))) for c in heard]
