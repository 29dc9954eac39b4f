"""`python tests/studies/trace.py`: planted changes, equal runs and the hash of `callbacks.Trace`.

200 changes are planted: one bit of one array at one step, one number of one example, two batches
swapped, a rate or a constant one unit in the last place larger, another key of dropout, another
version of a package, another number of devices. `solstice.diff` must name each at its step. 50
pairs of equal runs, half of them interrupted and 10 of these killed, must show no difference. The
exit code is 1 if one is missed or made up. `--quick` plants a tenth.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import solstice
from solstice._traces import FOLDER, Trace
from solstice.callbacks import Checkpoint
from solstice.callbacks import Trace as Traces

NUM_EPOCHS, NUM_BATCHES, BATCH = 3, 12, 4
STEPS = NUM_EPOCHS * NUM_BATCHES
LEAVES = ("weight", "momentum", "mean", "count")

fault: dict[str, Any] = {"step": 0, "leaf": 0, "mask": 0, "place": 0}
"""The bit to flip: the steps ask the host for it, so the program does not depend on it."""


def masks(step: Any) -> Any:
    """The words to flip in each leaf after a step: a row of 12 for each."""
    found = np.zeros((len(LEAVES), 12), np.uint32)
    if int(step) == fault["step"]:
        found[fault["leaf"], fault["place"]] = fault["mask"]
    return found


class Net(solstice.Experiment):
    """A layer with dropout, momentum and a running mean."""

    weight: Any
    momentum: Any
    mean: Any
    count: Any
    key: Any
    rate: Any
    factor: float = eqx.field(static=True)

    def __init__(self, rate: float = 0.1, seed: int = 0, factor: float = 0.9) -> None:
        self.weight = jax.random.normal(jax.random.key(7), (4, 3))
        self.momentum = jnp.zeros((4, 3))
        self.mean = jnp.zeros((4,), jnp.bfloat16)
        self.count = jnp.zeros((), jnp.int32)
        self.key = jax.random.key(seed)
        self.rate = jnp.float32(rate)
        self.factor = factor

    def loss(self, weight: Any, batch: Any, key: Any) -> Any:
        x, y = batch
        kept = jax.random.bernoulli(key, 0.8, x.shape)
        return jnp.mean((jnp.tanh((x * kept) @ weight) - y) ** 2)

    def train_step(self, batch: Any) -> Any:
        key, now = jax.random.split(self.key)
        loss, grads = jax.value_and_grad(self.loss)(self.weight, batch, now)
        momentum = self.factor * self.momentum + grads
        mean = (0.9 * self.mean + 0.1 * batch[0].mean(0)).astype(jnp.bfloat16)
        new = [self.weight - self.rate * momentum, momentum, mean, self.count + 1]
        flips = jax.pure_callback(
            masks, jax.ShapeDtypeStruct((len(LEAVES), 12), jnp.uint32), self.count + 1
        )
        new = [flipped(leaf, flips[index]) for index, leaf in enumerate(new)]
        fields = dict(zip(LEAVES, new, strict=True))
        return solstice.replace(self, **fields, key=key), {"loss": loss}

    def eval_step(self, batch: Any) -> Any:
        return self, {}


def flipped(leaf: Any, mask: Any) -> Any:
    """The leaf with the bits of a mask flipped."""
    kind = jnp.uint16 if leaf.dtype == jnp.bfloat16 else jnp.uint32
    words = jax.lax.bitcast_convert_type(leaf, kind)
    mask = mask[: leaf.size].astype(kind).reshape(leaf.shape)
    return jax.lax.bitcast_convert_type(words ^ mask, leaf.dtype)


def arrays() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    size = NUM_BATCHES * BATCH
    return (
        draw.normal(size=(size, 4)).astype(np.float32),
        draw.normal(size=(size, 3)).astype(np.float32),
    )


def batches(data: tuple[np.ndarray, np.ndarray]) -> Any:
    return solstice.data.batches(data, BATCH, shuffle=True, seed=3)


def run(folder: Path, data: Any = None, net: Any = None, *others: Any, **options: Any) -> None:
    """Trains one run into a folder, with its trace."""
    callbacks = [Traces(folder), *others]
    data = batches(arrays()) if data is None else data
    solstice.Trainer(callbacks).fit(net or Net(), data, num_epochs=NUM_EPOCHS, **options)


Planted = Iterator[tuple[str, Callable[[Path], object], Callable[[solstice.RunDiff], bool]]]
"""A name, a run with a change, and whether a comparison names it."""


def bits(count: int, draw: np.random.Generator) -> Planted:
    sizes, widths = (12, 12, 4, 1), (32, 32, 16, 32)
    for _ in range(count):
        leaf, step = int(draw.integers(4)), int(draw.integers(1, STEPS + 1))
        bit, place = int(draw.integers(widths[leaf])), int(draw.integers(sizes[leaf]))
        spec = {"step": step, "leaf": leaf, "mask": 1 << bit, "place": place}

        def change(folder: Path, spec: dict[str, int] = spec) -> None:
            fault.update(spec)
            try:
                run(folder)
            finally:
                fault.update(step=0)

        name = f"bit {bit} of {LEAVES[leaf]}[{place}] after step {step}"
        wanted = "state", step, (f"state/{LEAVES[leaf]}",)
        yield name, change, lambda d, w=wanted: (d.kind, d.step, d.names) == w


def step_of(row: int) -> int:
    """The first step whose batch has this example."""
    marked = np.zeros(NUM_BATCHES * BATCH, np.int32)
    marked[row] = 1
    found = solstice.data.batches((marked,), BATCH, shuffle=True, seed=3)
    return next(i for i, (batch,) in enumerate(found, 1) if batch.any())


def examples(count: int, draw: np.random.Generator) -> Planted:
    for _ in range(count):
        row, column = int(draw.integers(NUM_BATCHES * BATCH)), int(draw.integers(4))
        data = arrays()
        data[0][row, column] = np.nextafter(data[0][row, column], np.float32(9))
        step = step_of(row)
        wanted = "data", step, ("batch/0",), (0, step - 1)
        yield (
            f"number {column} of example {row}",
            lambda folder, data=data: run(folder, batches(data)),
            lambda d, w=wanted: (d.kind, d.step, d.names, (d.epoch, d.batch)) == w,
        )


def swaps(count: int, draw: np.random.Generator) -> Planted:
    for _ in range(count):
        one, other = sorted(draw.choice(NUM_BATCHES, 2, replace=False))
        order = list(batches(arrays()))
        order[one], order[other] = order[other], order[one]
        yield (
            f"batches {one} and {other} swapped",
            lambda folder, order=order: run(folder, order),
            lambda d, step=int(one) + 1: (d.kind, d.step) == ("data", step),
        )


def rates(count: int, draw: np.random.Generator) -> Planted:
    for index in range(count):
        if index % 2:
            more = float(np.nextafter(np.float32(0.1), np.float32(1)))
            yield (
                "the rate, 1 ulp more",
                lambda folder, more=more: run(folder, net=Net(rate=more)),
                lambda d: (
                    (d.kind, d.names) == ("start", ("state/rate",)) and "rate" in str(d.before)
                ),
            )
        else:
            factor = float(np.nextafter(np.float32(0.9), np.float32(1)))
            yield (
                "a constant, 1 ulp more",
                lambda folder, factor=factor: run(folder, net=Net(factor=factor)),
                # The momentum is 0 before, so the first product is the same.
                lambda d: (d.kind, d.step) == ("state", 2) and "program" in str(d.before),
            )


def keys(count: int, draw: np.random.Generator) -> Planted:
    for _ in range(count):
        seed = int(draw.integers(1, 10**6))
        yield (
            f"key {seed}",
            lambda folder, seed=seed: run(folder, net=Net(seed=seed)),
            lambda d: (d.kind, d.names) == ("start", ("state/key",)) and "keys" in str(d.notes),
        )


def versions(count: int, draw: np.random.Generator) -> Planted:
    names = ["optax", "jaxlib", "numpy", "equinox"]
    for _ in range(count):
        name = names[int(draw.integers(len(names)))]

        def change(folder: Path, name: str = name) -> None:
            run(folder)
            path = folder / "run.json"
            found = json.loads(path.read_text())
            found["versions"][name] = "99.0"
            path.write_text(json.dumps(found))

        yield f"version of {name}", change, lambda d, name=name: is_only(d, f"version of {name}: ")


def is_only(found: solstice.RunDiff, start: str) -> bool:
    """Whether the runs are equal, and one thing differed before them."""
    before = [line for line in found.before or [] if not line.startswith("git commit")]
    return found.is_equal and len(before) == 1 and before[0].startswith(start)


def devices(count: int, draw: np.random.Generator) -> Planted:
    for _ in range(count):
        number = int(draw.choice([2, 4]))

        def change(folder: Path, number: int = number) -> None:
            trainer = solstice.Trainer([Traces(folder)], mesh=number)
            trainer.fit(Net(), batches(arrays()), num_epochs=NUM_EPOCHS)

        yield (
            f"{number} devices",
            change,
            lambda d, n=number: (
                f"{n} devices" in str(d.before) and d.kind in (None, "outputs", "state")
            ),
        )


class Interrupts(solstice.Callback):
    """Ends a run at a step, by an error or as by `kill -9`."""

    can_stop = True

    def __init__(self, step: int, *, kills: bool) -> None:
        self.every, self._kills = step, kills

    def on_step_end(self, record: solstice.Record) -> None:
        if self._kills:
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("interrupted")


def equal_pair(index: int, folder: Path, draw: np.random.Generator, kills: int) -> None:
    """A run that equals the one without a change; odd ones are interrupted and resumed."""
    if index % 2 == 0:
        run(folder)
        return
    step, every = int(draw.integers(2, STEPS)), int(draw.integers(1, 9))
    saves = Checkpoint(folder, every=every)
    if index // 2 < kills:
        command = [sys.executable, __file__, "--child", str(folder), str(step), str(every)]
        done = subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
        assert done.returncode == -signal.SIGKILL, done.returncode
    else:
        with suppress(RuntimeError):
            run(folder, None, None, saves, Interrupts(step, kills=False))
    run(folder, None, None, saves, resume="last")


def collisions(count: int) -> dict[str, int]:
    """Pairs of equal digests among pairs of different arrays, for changes that a sum would miss."""
    draw = np.random.default_rng(1)
    words = draw.normal(size=(count, 8)).astype(np.float32).view(np.uint32)
    changed = {name: words.copy() for name in ("two signs", "a swap", "two last bits", "one bit")}
    changed["two signs"][:, :2] ^= np.uint32(1 << 31)
    changed["a swap"][:, :2] = words[:, 1::-1]
    changed["two last bits"][:, :2] ^= np.uint32(1)
    changed["one bit"][:, 0] ^= np.uint32(1) << draw.integers(32, size=count, dtype=np.uint32)
    digest = jax.jit(jax.vmap(lambda x: solstice_hash(x)))
    base = np.asarray(digest(words))
    return {name: int(np.sum(np.asarray(digest(x)) == base)) for name, x in changed.items()}


def solstice_hash(words: Any) -> Any:
    from solstice._engine._hash import hashes

    return hashes([words], by_slices=False)[0]


def study(scale: float, folder: Path) -> int:
    draw, missed = np.random.default_rng(0), 0
    run(folder / "base")
    kinds = {bits: 80, examples: 40, swaps: 30, rates: 20, keys: 10, versions: 10, devices: 10}
    for plant, most in kinds.items():
        count, named = max(int(most * scale), 1), 0
        for index, (name, change, is_named) in enumerate(plant(count, draw)):
            there = folder / f"{plant.__name__}-{index}"
            change(there)
            found = solstice.diff(folder / "base", there)
            named += is_named(found)
            if not is_named(found):
                print(f"MISSED: {name}\n{found}")
        missed += count - named
        print(f"{plant.__name__}: {named} of {count} named", flush=True)
    count, equal = max(int(50 * scale), 4), 0
    for index in range(count):
        there = folder / f"equal-{index}"
        equal_pair(index, there, draw, max(int(10 * scale), 1))
        found = solstice.diff(folder / "base", there)
        # Somebody may edit the repository meanwhile.
        before = [line for line in found.before or [] if not line.startswith("git commit")]
        same = found.is_equal and not before and found.through == STEPS
        same &= Trace(there / FOLDER).last == STEPS
        equal += same
        if not same:
            print(f"FALSE: {found}")
    print(f"equal pairs: {equal} of {count} without a difference")
    tried = int(2**22 * scale)
    found = collisions(tried)
    print(f"collisions in {tried:,} pairs: {found}")
    return int(missed > 0 or equal < count or any(found.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the changes")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        folder, step, every = Path(given.child[0]), int(given.child[1]), int(given.child[2])
        run(folder, None, None, Checkpoint(folder, every=every), Interrupts(step, kills=True))
        return 2
    with tempfile.TemporaryDirectory() as folder:
        return study(0.1 if given.quick else 1.0, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
