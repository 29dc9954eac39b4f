"""`python tests/studies/spikes.py [--quick]`: planted spikes are skipped, and no other step is.

20 batches of a run get a spike: targets or features in other units, or NaN. For each task and
optimiser, the run must skip these steps alone, and end with the bits of a run that never saw these
batches; with gradient descent, also with those of a run in which they are masked. A run that is
killed between spikes and resumed must end with the same bits. The exit code is 1 if one does not.
"""

import argparse
import os
import signal
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
from solstice import checkpoint
from solstice.callbacks import Checkpoint
from solstice.compat import skip_spikes, spikes_of
from solstice.data import Masked

STEPS, SIZE, NUM_SPIKES = 400, 32, 20

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.sgd(0.05),
    "momentum": lambda: optax.sgd(0.01, momentum=0.9),
    "adam": lambda: optax.adam(1e-3),
    "clipped adamw": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
}


def places() -> list[int]:
    """The indices of the batches with a spike, two of them next to each other."""
    rng = np.random.default_rng(7)
    return sorted({10, 11, *(rng.choice(np.arange(12, STEPS), NUM_SPIKES - 2, replace=False))})


def digits(kind: str) -> tuple[list[Any], list[Any]]:
    """Batches of digits, whole and with spikes; labels are noisy, so that no gradient vanishes."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(len(labels)) < 0.2, rng.integers(0, 10, len(labels)), labels)
    rows = rng.integers(0, len(images), (STEPS, SIZE))
    x, y = (images[rows] / 16).astype(np.float32), noisy[rows].astype(np.int32)
    clean = list(zip(x.copy(), y, strict=True))
    for place in places():
        if kind == "nan":
            x[place, 3, 20] = np.nan
        else:
            x[place] *= 1000  # other units
    return clean, list(zip(x, y, strict=True))


def regression() -> tuple[list[Any], list[Any]]:
    """Batches of a noisy regression, whole and with spikes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, SIZE, 8)).astype(np.float32)
    y = np.tanh(x @ rng.normal(size=8)) + rng.normal(size=(STEPS, SIZE)) / 2
    y = y.astype(np.float32)
    clean = list(zip(x, y.copy(), strict=True))
    y[places()] += 1000
    return clean, list(zip(x, y, strict=True))


def experiment(task: str, optimizer: Any) -> Any:
    if task == "regression":
        net = eqx.nn.MLP(8, 1, 32, 1, key=jax.random.key(0))
        return solstice.RegressionExperiment(net, skip_spikes(optimizer))
    net = eqx.nn.MLP(64, 10, 32, 1, key=jax.random.key(0))
    return solstice.ClassificationExperiment(net, skip_spikes(optimizer), num_classes=10)


TASKS: dict[str, Callable[[], tuple[list[Any], list[Any]]]] = {
    "digits": lambda: digits("units"),
    "digits with NaN": lambda: digits("nan"),
    "regression": regression,
}


class Skipped(solstice.Callback):
    """The indices of the batches whose steps were skipped."""

    modes, needs = ("train",), ("experiment",)

    def __init__(self) -> None:
        self.indices: list[int] = []
        self._count = 0

    def on_step_end(self, record: solstice.Record) -> None:
        count = int(spikes_of(record.experiment)[0].skipped)
        if count > self._count:
            self.indices.append(record.step - 1)
        self._count = count


def same(one: Any, other: Any) -> bool:
    """Whether params and the inner state of the optimiser have the same bits."""
    pairs = ((exp.params, exp.opt_state[0], exp.opt_state[1].window) for exp in (one, other))
    return not checkpoint.diff(*pairs)


def check(task: str, name: str) -> list[str]:
    """What is wrong, in words."""
    clean, spiked = TASKS[task]()
    skipped = Skipped()
    found = solstice.Trainer([skipped]).fit(experiment(task, OPTIMIZERS[name]()), spiked)
    wrong = []
    if skipped.indices != places():
        missed = [*{*places()} - {*skipped.indices}]
        wrong.append(f"missed {missed}, others {[*{*skipped.indices} - {*places()}]}")
    planted = {*places()}
    without = [batch for index, batch in enumerate(clean) if index not in planted]
    expected = solstice.Trainer().fit(experiment(task, OPTIMIZERS[name]()), without)
    if not same(found, expected):
        wrong.append("other bits than without these batches")
    if name == "sgd" and "NaN" not in task:  # the mask leaves NaN features in the gradient
        masked = [Masked(b, np.full(SIZE, index not in planted)) for index, b in enumerate(clean)]
        whole = [Masked(b, np.ones(SIZE, bool)) for b in spiked]
        one, other = (
            solstice.Trainer().fit(experiment(task, OPTIMIZERS[name]()), ds)
            for ds in (whole, masked)
        )
        if not same(one, other):
            wrong.append("other bits than with these batches masked")
    return wrong


def resumed(folder: str, kill_at: int | None) -> Any:
    """A run of the digits that saves each 10 steps, resumed from its newest checkpoint."""

    class Kill(solstice.Callback):
        modes = ("train",)

        def on_step_end(self, record: solstice.Record) -> None:
            if record.step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    callbacks = [Checkpoint(folder, every=10), *([] if kill_at is None else [Kill()])]
    exp = experiment("digits", OPTIMIZERS["adam"]())
    return solstice.Trainer(callbacks).fit(exp, digits("units")[1], resume="last")


def check_kill(after: list[int]) -> list[str]:
    """Kills a run after some of its spikes, each time in another process."""
    with tempfile.TemporaryDirectory() as folder:
        for place in after:
            command = [sys.executable, __file__, "--child", folder, str(place + 4)]
            code = subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode
            if code != -signal.SIGKILL:
                return [f"the run was not killed: {code}"]
        found = resumed(folder, None)
    expected = solstice.Trainer().fit(
        experiment("digits", OPTIMIZERS["adam"]()), digits("units")[1]
    )
    return [] if not checkpoint.diff(found, expected) else ["other bits after a kill"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="one optimiser")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        resumed(asked.child[0], int(asked.child[1]))
        return 1
    bad = 0
    for task in TASKS:
        for name in list(OPTIMIZERS)[: 1 if asked.quick else None]:
            wrong = check(task, name)
            bad += bool(wrong)
            print(f"{task:18} {name:15} {'; '.join(wrong) or f'{NUM_SPIKES} of {NUM_SPIKES}'}")
    wrong = check_kill(places()[2 : 4 if asked.quick else 8 : 2])
    print(f"killed and resumed: {'; '.join(wrong) or 'the same bits'}")
    return int(bad > 0 or bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
