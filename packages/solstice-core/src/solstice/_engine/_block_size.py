"""The number of steps in the next block: the one place that decides it, from numbers alone.

It is the smallest of these: the size that a rule chooses from the cost of a step; the size whose
calls took at most `SECONDS_PER_CALL` so far; the steps until a callback looks; the steps until the
run ends. A block also ends when its batches take too long to read.

No choice changes bits: a shorter block is the same program with a smaller trip count, also one of a
single step. Only a call without a loop is another program, so a rule chooses that from the step
alone, never from a clock or from the place of the data: for convolutions, and for steps that are
long or change much memory.

`python tests/benchmarks/block_sizes.py` measures each constant on your machine. The figures below
are of 2 cores of a CPU.
"""

from dataclasses import dataclass

import jax

from solstice._engine._cost import Cost

STEPS_PER_CALL = 32
"""Steps in a block: enough to make the cost of a call negligible, and few to wait for."""
# A small MLP, in us a step: 73 with 1 step a call, 21 with 8, 15 with 32, 13 with 128.

SMALL_STEPS_PER_CALL = 512
"""Steps in a block of few bytes: a call costs more for an Experiment of many arrays."""
# 50 arrays, in us a step: 7.5 with 32 steps a call, 3.6 with 512, 3.4 with 2048.

SMALL_BYTES_PER_CALL = 2**20
"""Bytes of the batches and outputs in such a block."""
# Batches of 1 kB, in us a step: 4.5 with 32 kB a block, 2.7 with 256 kB and 1 MiB, 5.0 with 4 MiB.

BYTES_PER_CALL = 2**23
"""Bytes of batches and outputs in a block: filling and reading are slower beyond the caches."""
# Batches of 256 kB, in us a step: 32 with 2 MiB a block, 25 with 8 MiB, 39 with 32, 50 with 128.

FLOPS_PER_CALL = {"cpu": 2**33}
"""Operations in a block: a fraction of a second, because Ctrl-C and callbacks wait for its end."""
# 2**33 in products of 1024 x 1024 take 0.08 s.

_FLOPS_PER_CALL_ELSEWHERE = 2**43
# Not measured: 0.2 s at 50 TFLOP/s, as accelerators have in float32. `BlockSize` corrects it.

CALLS_AT_ONCE = 8
"""Single-step calls that are made one after the other, because Python is slower after a long step
has filled the caches."""
# A small convolution, in us a step: 609 with 1 call a block, 561 with 8, 480 with 32, which is more
# to wait for.

CHANGED_BYTES = {"cpu": 2**27}
"""Bytes that a step may change and still run in a loop. XLA cannot update the arrays of a loop in
place where a step reads them first: it copies them at each step, into memory of each call."""
# Layers of 1024 x 1024 with Adam, a loop of 2 and of 8 steps over single steps: 1.00 and 0.98 with
# 96 MiB, 1.34 and 1.11 with 144 MiB, 1.31 and 1.09 with 288 MiB. Tables of embeddings, which a step
# does not multiply, are not copied: they would be faster in a loop.

_CHANGED_BYTES_ELSEWHERE = 2**28
# Not measured: to read and write them takes an accelerator 0.2 ms, and its calls are asynchronous.

_SLOWEST = 16
"""The slowdown of an operation that waits for memory."""
# An addition in memory takes 145 times one in a product, so a first block of nothing else takes
# 0.8 s, once. With 145, the first block of every network would be short.

SECONDS_PER_CALL = 0.25
"""The longest time of a call, because Ctrl-C, signals and callbacks wait for its end."""
# A choice, not a measurement: people notice a longer delay.

PATIENCE = SECONDS_PER_CALL
"""Seconds after which a block runs with the batches read so far, by the same choice."""

_GROWTH = 8
"""The largest factor by which blocks grow."""
# A choice: 3 times from 1 step to 512, and none is long because one before was fast by chance.


@dataclass(frozen=True)
class Arrangement:
    """The sizes of calls and blocks that a rule chooses before anything runs.

    Attributes:
        steps_per_call: the most steps in a call.
        steps_per_block: the most steps in a block, run by one call or by several of one step each.
        first_steps: the most steps in the first block, whose time sets the size of the next: few,
            in case the steps are slow, and 1 if their cost is unknown.
        reason: the reason for `steps_per_call`.
        loops: whether a call is a loop, which may have one turn. A call without one may round
            differently, so this depends on the step and on the user's choice alone.
    """

    steps_per_call: int
    steps_per_block: int
    first_steps: int
    reason: str
    loops: bool


def arrangement(
    cost: Cost,
    changed_bytes: int,
    step_bytes: int,
    steps_per_call: int | None = None,
    epoch_steps: int | None = None,
) -> Arrangement:
    """The arrangement for steps of this cost.

    Args:
        cost: the cost of a step, on one device.
        changed_bytes: the bytes of the arrays of the state that a step changes, on one device.
        step_bytes: the bytes of a batch and of the outputs of a step; of data on the device, those
            of the outputs that are kept.
        steps_per_call: the user's choice, or None. It is an upper bound.
        epoch_steps: for data on the device, the steps in an epoch; None for data from the host.
    """
    most_changed = CHANGED_BYTES.get(jax.default_backend(), _CHANGED_BYTES_ELSEWHERE)
    if changed_bytes > most_changed:
        # A block of one step too, because a callback cannot stop the run within it, so the call
        # can donate its input.
        reason = (
            f"a step changes {changed_bytes:,} bytes, and a loop of steps would copy them (from "
            f"{most_changed:,} bytes)"
        )
        return Arrangement(1, 1, 1, reason, loops=False)
    if steps_per_call is not None:
        most, reason = steps_per_call, "set by steps_per_call"
        return Arrangement(most, most, most, reason, loops=most > 1)
    most, reason = _most_steps(cost, step_bytes, epoch_steps)
    per_call, loops = most, cost.flops <= _flops_per_call()
    if cost.has_convolution and jax.default_backend() == "cpu":
        reason = "the step has a convolution, whose backward pass is slow in a loop on the CPU"
        per_call, most, loops = 1, min(most, CALLS_AT_ONCE), False
    # Few enough to be short even if every operation waits for memory.
    first = _flops_per_call() // max(_SLOWEST * cost.flops, 1) if cost.is_known else 1
    return Arrangement(per_call, most, max(min(first, most), 1), reason, loops)


def _most_steps(cost: Cost, step_bytes: int, epoch_steps: int | None) -> tuple[int, str]:
    """The largest number of steps that is short and fits into the caches, and the reason."""
    most = _flops_per_call()
    choices = [
        (
            most // max(cost.flops, 1),
            f"a step has about {cost.flops:,} operations, and a call has at most {most:,}",
        )
    ]
    if epoch_steps is not None:
        choices.append((epoch_steps, f"an epoch of data on the device has {epoch_steps:,} steps"))
    if epoch_steps is None or step_bytes > 0:
        choices += _choices_by_bytes(max(step_bytes, 1))
    count, reason = min(choices, key=lambda choice: choice[0])
    # A batch beyond the limit gives 0, and a block has at least one step.
    return max(count, 1), reason


def _choices_by_bytes(size: int) -> list[tuple[int, str]]:
    small = min(SMALL_BYTES_PER_CALL // size, SMALL_STEPS_PER_CALL)
    return [
        (max(small, STEPS_PER_CALL), "small steps cost less when one call runs many"),
        (
            BYTES_PER_CALL // size,
            f"a batch and its outputs have {size:,} bytes, and a call has at most "
            f"{BYTES_PER_CALL:,}",
        ),
    ]


def _flops_per_call() -> int:
    return FLOPS_PER_CALL.get(jax.default_backend(), _FLOPS_PER_CALL_ELSEWHERE)


class BlockSize:
    """The number of steps in the next block of a run.

    Blocks start short, and grow as far as the measured time allows, because the time of a step does
    not always follow from its program: waiting for memory or for the host, and loops of unknown
    length, take longer than `Cost` says.

    Args:
        most: the most steps in a block.
        first: the most steps in the first one; None if all have `most`.
        patience: the seconds after which a block runs with the batches read so far.

    Attributes:
        room: the most steps in the next block, by the time of earlier ones.
    """

    def __init__(self, most: int, first: int | None = None, patience: float = PATIENCE) -> None:
        self.most = most
        self.room = most if first is None else first
        self._adapts = first is not None
        self._patience = patience

    def next(self, until_look: int, until_end: int | None = None) -> int:
        """The most steps in the next block.

        Args:
            until_look: the steps until a callback looks between two steps.
            until_end: the steps until `max_steps`; None if it is not set.
        """
        most = min(self.room, until_look)
        return most if until_end is None else min(most, until_end)

    def is_full(self, count: int, most: int, seconds: float) -> bool:
        """Whether a block of `count` batches runs now, `seconds` after its first was read."""
        return count >= most or seconds >= self._patience

    def learn(self, steps: int, seconds: float, *, was_awaited: bool) -> None:
        """Adapts to a block of `steps` steps.

        `seconds` is an upper bound if nothing waited for its end, so it then only lengthens blocks.
        """
        if not self._adapts:
            return
        # A coarse clock may report 0 seconds for a short call.
        fits = int(steps * min(SECONDS_PER_CALL / max(seconds, 1e-9), _GROWTH))
        is_slow = was_awaited and seconds > SECONDS_PER_CALL
        if is_slow or fits > self.room:
            self.room = min(max(fits, 1), self.most)  # `fits` is 0 for a slow step
