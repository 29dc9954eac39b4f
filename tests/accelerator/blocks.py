"""The part "blocks": what the constants of `_block_size.py` cost on this device."""

import time
from typing import Any

import block_sizes

from solstice._engine import _block_size

STEPS = (1, 8, 32, 128, 512)
DEPTHS = (2, 6, 12, 24)
"""Layers of 2048 x 2048 with Adam, of which a step changes 48 MiB each."""


def run(task: Any) -> None:
    if task.small:
        block_sizes.ROUNDS = 1
    of_a_small_mlp(task, STEPS[:2] if task.small else STEPS)
    of_operations(task, 64 if task.small else 4096, 2**16 if task.small else 2**27)
    width = 32 if task.small else 2048
    for depth in DEPTHS[:1] if task.small else DEPTHS:
        if time.monotonic() > task.deadline:
            break
        for name, ratio in block_sizes.over_single_steps(width, depth).items():
            task.add(f"a loop over single steps, {name}", value=f"{ratio:.2f} times")


def of_a_small_mlp(task: Any, sizes: tuple[int, ...]) -> None:
    net, batch = block_sizes.mlp(64, 64, 10), block_sizes.normal(32, 64)
    steps = 2 * max(sizes)
    for size, found in zip(
        sizes, block_sizes.per_step(net, batch, sizes, max(steps, 512)), strict=True
    ):
        task.add(f"a small MLP, {size} steps in a call", value=f"{found:.1f} us a step")


def of_operations(task: Any, n: int, size: int) -> None:
    product, memory = block_sizes.of_product(n), block_sizes.of_memory(size)
    flops = _block_size._FLOPS_PER_CALL_ELSEWHERE
    what = f"2^{flops.bit_length() - 1} operations, in products of {n} x {n}"
    task.add(what, value=f"{flops * product:.3g} s")
    task.add("the speed of these products", value=f"{1e-12 / product:.3g} TFLOP/s")
    task.add("an addition in memory to one in a product", value=f"{memory / product:.3g} times")
