"""`python tests/benchmarks/block_sizes.py`: a measurement for each constant of `_block_size.py`.

Each figure is the best of several rounds. Run it on a quiet machine.
"""

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import solstice
from solstice._engine import (
    BlockSize,
    CompiledStepper,
    Feeder,
    StagingBuffers,
    _block_size,
    placement_of,
)

ROUNDS = 10
ADAM = optax.adam(1e-3)


class Descends(solstice.Experiment):
    """Gradient descent of a loss."""

    params: Any
    loss: Any

    def train_step(self, batch: Any) -> Any:
        value, grads = jax.value_and_grad(self.loss)(self.params, batch)
        params = jax.tree.map(lambda p, g: p - 1e-3 * g, self.params, grads)
        return solstice.replace(self, params=params), {"loss": value}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": self.loss(self.params, batch)}


class Adapts(Descends):
    """The same with Adam, whose moments a step changes too."""

    opt_state: Any

    def train_step(self, batch: Any) -> Any:
        value, grads = jax.value_and_grad(self.loss)(self.params, batch)
        updates, opt_state = ADAM.update(grads, self.opt_state)
        params = optax.apply_updates(self.params, updates)
        return solstice.replace(self, params=params, opt_state=opt_state), {"loss": value}


def with_adam(experiment: Descends) -> Adapts:
    return Adapts(experiment.params, experiment.loss, ADAM.init(experiment.params))


def dense(params: Any, x: Any) -> Any:
    for w in params[:-1]:
        x = jnp.tanh(x @ w)
    return jnp.mean((x @ params[-1]) ** 2)


def scaled(params: Any, x: Any) -> Any:
    return jnp.mean((x[0] * sum(params)) ** 2)


def convolved(params: Any, x: Any) -> Any:
    return jnp.mean(jax.lax.conv(x, params, (1, 1), "SAME") ** 2)


def mlp(*sizes: int) -> Descends:
    return Descends([jnp.full(pair, 0.01) for pair in pairwise(sizes)], dense)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def per_step(
    experiment: Descends, batch: np.ndarray, sizes: Iterable[int], steps: int
) -> list[float]:
    """Microseconds per step, with feeding, in blocks of these sizes."""
    return interleaved([fed(experiment, batch, size) for size in sizes], steps)


def interleaved(runs: Iterable[Callable[[int], float]], steps: int) -> list[float]:
    """The best time per step of each run."""
    runs = list(runs)
    for run in runs:
        run(2)  # compiles
    # Interleaved, so that a busy moment of the machine hits all of them.
    rounds = [[run(steps) for run in runs] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def fed(experiment: Descends, batch: np.ndarray, size: int) -> Callable[[int], float]:
    placement = placement_of(experiment)
    stepper = CompiledStepper(experiment, "train_step", batch, placement=placement)
    slots = StagingBuffers(BlockSize(size), placement=placement)

    def run(count: int) -> float:
        feeder = Feeder(iter([batch] * count), slots, lambda batch: None)
        began = time.perf_counter()
        while (block := feeder.take(size)) is not None:
            stepper.run(block)
        stepper.take_metrics()
        jax.block_until_ready(stepper.share_experiment().params)
        return (time.perf_counter() - began) / count * 1e6

    return run


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    jitted = jax.jit(function)
    jax.block_until_ready(jitted(*arguments))
    times: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(jitted(*arguments))
        times.append(time.perf_counter() - began)
    return min(times)


def table(title: str, unit: str, names: Iterable[object], values: Iterable[float]) -> None:
    print(f"\n{title}")
    for name, value in zip(names, values, strict=True):
        print(f"  {name!s:>16}  {value:>10.3g} {unit}", flush=True)


def by_steps(title: str, experiment: Descends, batch: np.ndarray, sizes: tuple[int, ...]) -> None:
    steps = max(512, 2 * max(sizes))
    table(
        f"{title}, by steps in a block",
        "us a step",
        sizes,
        per_step(experiment, batch, sizes, steps),
    )


def by_bytes(title: str, batch: np.ndarray, sizes: tuple[int, ...]) -> None:
    mean = Descends(jnp.ones(()), lambda w, x: jnp.mean(w * x))
    counts = [size // batch.nbytes for size in sizes]
    found = per_step(mean, batch, counts, 2 * max(counts))
    table(f"{title}, by bytes in a block", "us a step", sizes, found)


def over_single_steps(width: int, depth: int, sizes: tuple[int, ...] = (2, 8)) -> dict[str, float]:
    """The time of a step in loops of these sizes over that of a step alone, by a name for each."""
    deep, batch = with_adam(mlp(*[width] * (depth + 1))), normal(8, width)
    limits = _block_size.CHANGED_BYTES
    try:
        _block_size.CHANGED_BYTES = {jax.default_backend(): 0}
        runs = [fed(deep, batch, 1)]
        _block_size.CHANGED_BYTES = {jax.default_backend(): 2**62}
        runs += [fed(deep, batch, size) for size in sizes]
    finally:
        _block_size.CHANGED_BYTES = limits
    alone, *loops = interleaved(runs, 16)
    names = [f"{3 * depth * width**2 // 2**18} MiB, {size} steps" for size in sizes]
    return {name: loop / alone for name, loop in zip(names, loops, strict=True)}


def by_changed_bytes(width: int, depths: tuple[int, ...]) -> None:
    found: dict[str, float] = {}
    for depth in depths:
        found |= over_single_steps(width, depth)
    title = "CHANGED_BYTES: a loop over single steps, by bytes that change"
    table(title, "times", found.keys(), found.values())


def of_product(n: int) -> float:
    """Seconds of an operation in products of n x n, of which one call makes many."""
    times, x = 16, normal(n, n) / n**0.5
    loop = seconds(lambda x: jax.lax.fori_loop(0, times, lambda _, y: y @ x, x), jnp.asarray(x))
    return loop / times / (2 * n**3)


def of_memory(size: int) -> float:
    """Seconds of an operation that waits for memory."""
    times = 16
    loop = seconds(lambda x: jax.lax.fori_loop(0, times, lambda _, x: x + 1, x), jnp.ones(size))
    return loop / times / size


def main() -> None:
    small, many = mlp(64, 64, 10), Descends([jnp.float32(i) for i in range(50)], scaled)
    by_steps("STEPS_PER_CALL: a small MLP", small, normal(32, 64), (1, 8, 32, 128))
    by_steps("SMALL_STEPS_PER_CALL: 50 arrays", many, normal(4), (32, 512, 2048))
    by_bytes("SMALL_BYTES_PER_CALL: batches of 1 kB", normal(2**8), (2**15, 2**18, 2**20, 2**22))
    by_bytes("BYTES_PER_CALL: batches of 256 kB", normal(2**16), (2**21, 2**23, 2**25, 2**27))
    kernel = Descends(jnp.ones((8, 3, 3, 3)), convolved)
    by_steps("CALLS_AT_ONCE: a convolution", kernel, normal(8, 3, 32, 32), (1, 8, 32))
    by_changed_bytes(1024, (4, 8, 12, 24))
    flops, product = 2**33, of_product(1024)
    table("FLOPS_PER_CALL, in products of 1024x1024", "s", [f"{flops:,}"], [product * flops])
    slowest = of_memory(2**24) / product
    table("_SLOWEST: an addition in memory to one in a product", "times", [""], [slowest])


if __name__ == "__main__":
    main()
