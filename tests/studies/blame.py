"""`python tests/studies/blame.py [--quick]`: planted bad examples lead the ranking of their step.

50 examples are planted, one in each of the last 25 of 100 batches of 256 of two tasks: a wrong
label, and a pixel of 1e4. `solstice.blame` must rank each in the top 2 % of its step (5 of 256),
and name its row in the data set, in another process than the one that trained: for a plain net,
with Dropout, with BatchNorm, and with BatchNorm in micro-batches. `--quick` asks for 10 steps of
the plain one. The exit code is 1 if examples are not found.
"""

import argparse
import subprocess
import sys
import tempfile
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import solstice
from solstice.callbacks import Checkpoint

STEPS, SIZE, PLANTED = 100, 256, 25
TOP = SIZE * 2 // 100


class Net(eqx.Module):
    first: eqx.nn.Linear
    norm: Any
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, size: int, *, has_norm: bool = False, dropout: float = 0.0) -> None:
        one, two = jax.random.split(jax.random.key(0))
        self.first = eqx.nn.Linear(64, 64, key=one)
        self.norm = eqx.nn.BatchNorm(64, "batch", mode="batch") if has_norm else None
        self.dropout = eqx.nn.Dropout(dropout)
        self.last = eqx.nn.Linear(64, size, key=two)

    def __call__(self, x: Any, state: Any, *, key: Any = None) -> Any:
        x = self.first(x)
        x, state = (x, state) if self.norm is None else self.norm(x, state)
        return self.last(self.dropout(jax.nn.relu(x), key=key)), state


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.2},
    "batch norm": {"has_norm": True},
    "micro-batches": {"has_norm": True, "micro_batches": 4},
}
ALLOWED = {"dropout": 2}
"""How many of 50 may be missed: without some units, others are as wrong as a wrong label."""

PLANTS = ("label", "pixel")


def experiment(kind: str, plant: str) -> Any:
    """Which digit it is, for wrong labels; a regression of its number, for pixels.

    As a class, a pixel of 1e4 is right by luck in a tenth of the cases, with a loss and a gradient
    of exactly 0: it then does nothing to the step, and no ranking can find it.
    """
    options = dict(KINDS[kind])
    parts = options.pop("micro_batches", 1)
    net = eqx.nn.make_with_state(Net)(10 if plant == "label" else 1, **options)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    if plant == "label":
        return solstice.ClassificationExperiment(net, optimizer, 10, micro_batches=parts)
    return solstice.RegressionExperiment(net, optimizer, micro_batches=parts)


def data(plant: str) -> tuple[Any, dict[int, int]]:
    """The data set, and the planted row of each step."""
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    rows = rng.integers(0, len(images), STEPS * SIZE)
    x, y = (images[rows] / 16).astype(np.float32), labels[rows].astype(np.int32)
    train_ds = solstice.data.batches((x, y), SIZE, shuffle=True, seed=3)
    steps = range(STEPS - PLANTED + 1, STEPS + 1)
    planted = {step: int(rng.choice(train_ds.indices(0, step - 1))) for step in steps}
    for row in planted.values():
        if plant == "label":
            y[row] = (y[row] + rng.integers(1, 10)) % 10
        else:
            x[row, 28] = 1e4
    targets = y if plant == "label" else y.astype(np.float32)
    return solstice.data.batches((x, targets), SIZE, shuffle=True, seed=3), planted


def places(kind: str, plant: str, folder: str, steps: list[int]) -> list[tuple[int, ...]]:
    """The step, and the places of its planted example in the three rankings, from 1."""
    train_ds, planted = data(plant)
    found = []
    for step in steps:
        exp = experiment(kind, plant)
        blamed = solstice.blame(folder, step=step, experiment=exp, train_ds=train_ds)
        rankings = (blamed.worst(SIZE, by=by) for by in (None, "gradient_norm", "loss"))
        by = [[one.index for one in ranking].index(planted[step]) + 1 for ranking in rankings]
        found.append((step, *by))
    return found


def check(kind: str, plant: str, steps: list[int]) -> int:
    """Trains in this process, ranks in another, prints, and counts what is not found."""
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [Checkpoint(folder, every=25, keep=9)]
        solstice.Trainer(callbacks).fit(experiment(kind, plant), data(plant)[0])
        command = [sys.executable, __file__, "--child", kind, plant, folder, *map(str, steps)]
        pipe = subprocess.PIPE
        said = subprocess.run(command, stdout=pipe, stderr=pipe, text=True, check=True).stdout
    found = np.array([[int(word) for word in line.split()] for line in said.splitlines()])
    both, by_gradient, by_loss = (int((found[:, column] <= TOP).sum()) for column in (1, 2, 3))
    others = found[found[:, 1] > TOP].tolist()
    print(
        f"{kind:14} {plant}: {both} of {len(steps)} in the top 2 %; by gradient {by_gradient}, by "
        f"loss {by_loss}; others (step and places): {others}",
        flush=True,
    )
    return len(others)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="5 steps each of the plain net")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        kind, plant, folder, *steps = asked.child
        for row in places(kind, plant, folder, [int(step) for step in steps]):
            print(*row)
        return 0
    steps = list(range(STEPS - PLANTED + 1, STEPS + 1))[:: 5 if asked.quick else 1]
    bad = 0
    for kind in ["plain"] if asked.quick else KINDS:
        missed = sum(check(kind, plant, steps) for plant in PLANTS)
        bad += missed > ALLOWED.get(kind, 0)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
