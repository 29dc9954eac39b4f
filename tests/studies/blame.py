"""`python tests/studies/blame.py [--quick]`: planted bad examples lead the ranking of their step.

50 examples are planted among 25,600, one in each of the last 50 batches of 256: a wrong label, or a
pixel of 1e4. `solstice.blame` must rank each in the top 2 % of its step (5 of 256) by the gradient,
and name its row in the data set, in another process than the one that trained: for a plain net, one
with Dropout, one with BatchNorm, and in micro-batches. `--quick` asks for 10 steps of the plain
one. The exit code is 1 if an example is not found.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import solstice
from solstice.callbacks import Checkpoint

STEPS, SIZE, PLANTED = 100, 256, 50
TOP = SIZE * 2 // 100


class Net(eqx.Module):
    first: eqx.nn.Linear
    norm: Any
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, *, has_norm: bool = False, dropout: float = 0.0) -> None:
        one, two = jax.random.split(jax.random.key(0))
        self.first = eqx.nn.Linear(64, 64, key=one)
        self.norm = eqx.nn.BatchNorm(64, "batch", mode="batch") if has_norm else None
        self.dropout = eqx.nn.Dropout(dropout)
        self.last = eqx.nn.Linear(64, 10, key=two)

    def __call__(self, x: Any, state: Any, *, key: Any = None) -> Any:
        x = self.first(x)
        x, state = (x, state) if self.norm is None else self.norm(x, state)
        return self.last(self.dropout(jax.nn.relu(x), key=key)), state


def experiment(micro_batches: int = 1, **options: Any) -> Any:
    net = eqx.nn.make_with_state(Net)(**options)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    return solstice.ClassificationExperiment(
        net, optimizer, num_classes=10, micro_batches=micro_batches
    )


KINDS: dict[str, Callable[[], Any]] = {
    "plain": experiment,
    "dropout": lambda: experiment(dropout=0.2),
    "batch norm": lambda: experiment(has_norm=True),
    "micro-batches": lambda: experiment(micro_batches=4, dropout=0.2),
}


def data() -> tuple[Any, dict[int, int]]:
    """The data set, and the planted row of each step."""
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    rows = rng.integers(0, len(images), STEPS * SIZE)
    x, y = (images[rows] / 16).astype(np.float32), labels[rows].astype(np.int32)
    train_ds = solstice.data.batches((x, y), SIZE, shuffle=True, seed=3)
    steps = range(STEPS - PLANTED + 1, STEPS + 1)
    planted = {step: int(rng.choice(train_ds.indices(0, step - 1))) for step in steps}
    for step, row in planted.items():
        if step % 2:
            y[row] = (y[row] + rng.integers(1, 10)) % 10
        else:
            x[row, 28] = 1e4
    return solstice.data.batches((x, y), SIZE, shuffle=True, seed=3), planted


def places(kind: str, folder: str, steps: list[int]) -> list[tuple[int, int, int]]:
    """The step, and the places of the planted example by gradient and by loss, from 1."""
    train_ds, planted = data()
    found = []
    for step in steps:
        blamed = solstice.blame(folder, step=step, experiment=KINDS[kind](), train_ds=train_ds)
        by = []
        for name in ("gradient_norm", "loss"):
            ranking = blamed.worst(SIZE, by=name)
            by.append(1 + [one.index for one in ranking].index(planted[step]))
        found.append((step, *by))
    return found


def check(kind: str, steps: list[int]) -> int:
    """Trains in this process, ranks in another, and prints what is not found."""
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [Checkpoint(folder, every=25, keep=9)]
        solstice.Trainer(callbacks).fit(KINDS[kind](), data()[0])
        command = [sys.executable, __file__, "--child", kind, folder, *map(str, steps)]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = [tuple(map(int, line.split())) for line in said.splitlines()]
    good = [step for step, by_gradient, _ in found if by_gradient <= TOP]
    first = sum(by_gradient == 1 for _, by_gradient, _ in found)
    by_loss = sum(place <= TOP for _, _, place in found)
    print(
        f"{kind:14} in the top 2 % by gradient: {len(good)} of {len(steps)}, first: {first}; "
        f"by loss: {by_loss}; not found (step, places): {[row for row in found if row[1] > TOP]}"
    )
    return len(steps) - len(good)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="10 steps of the plain net")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        kind, folder, *steps = asked.child
        for row in places(kind, folder, [int(step) for step in steps]):
            print(*row)
        return 0
    steps = list(range(STEPS - PLANTED + 1, STEPS + 1))
    if asked.quick:
        return int(check("plain", steps[::5]) > 0)
    return int(sum(check(kind, steps) for kind in KINDS) > 0)


if __name__ == "__main__":
    sys.exit(main())
