"""`python tests/studies/time_travel.py`: any step of a run, and branches, have the bits of the run.

For each framework, a run in a process of its own is killed twice by SIGKILL and resumed. Another
run, which nothing disturbs, notes a SHA-256 of the whole Experiment after each step. A third
process visits random steps of the first run by `solstice.at`, and a fourth branches there without a
change and trains to the end. All digests, and the rows of the history, must be equal.

100 steps in all, for Linen, Haiku and Equinox, with dropout, BatchNorm and a smaller last batch;
`--quick` visits 9. The exit code is 1 if one differs.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, CLASSES, ROWS, BATCH = 16, 4, 300, 32
STEPS_PER_EPOCH = -(-ROWS // BATCH)
EPOCHS = 30
STEPS = EPOCHS * STEPS_PER_EPOCH
EVERY = 40
KILLS = (87, 203)
"""The steps after which the run is killed."""

CACHE: dict[str, str] = {}
"""Where JAX keeps compiled programs, because each visit of a step compiles the same one."""

RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, FEATURES)).astype(np.float32)
Y = RNG.integers(0, CLASSES, ROWS).astype(np.int32)


def linen() -> Any:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.BatchNorm(not train)(nn.Dense(16)(x))
            return nn.Dense(CLASSES)(nn.Dropout(0.3, deterministic=not train)(nn.relu(x)))

    return Net()


def haiku() -> Any:
    import haiku as hk
    import jax

    def net(x: Any, is_training: bool) -> Any:
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Linear(16)(x), is_training))
        x = hk.dropout(hk.next_rng_key(), 0.3, x) if is_training else x
        return hk.Linear(CLASSES)(x)

    return hk.transform_with_state(net)


def equinox() -> Any:
    import equinox as eqx
    import jax

    class Net(eqx.Module):
        first: Any
        norm: Any
        dropout: Any
        last: Any

        def __init__(self) -> None:
            one, two = jax.random.split(jax.random.key(0))
            self.first = eqx.nn.Linear(FEATURES, 16, key=one)
            self.norm = eqx.nn.BatchNorm(16, "batch", mode="batch")
            self.dropout = eqx.nn.Dropout(0.3)
            self.last = eqx.nn.Linear(16, CLASSES, key=two)

        def __call__(self, x: Any, state: Any, *, key: Any = None) -> Any:
            x, state = self.norm(self.first(x), state)
            return self.last(self.dropout(jax.nn.relu(x), key=key)), state

    return eqx.nn.make_with_state(Net)()


FRAMEWORKS = {"linen": linen, "haiku": haiku, "equinox": equinox}


def make(framework: str) -> Any:
    import optax

    import solstice

    rate = optax.cosine_decay_schedule(3e-3, STEPS)
    return solstice.ClassificationExperiment(
        FRAMEWORKS[framework](), optax.adamw(rate), num_classes=CLASSES
    )


def data() -> Any:
    import solstice

    return solstice.data.batches((X, Y), BATCH, shuffle=True, seed=3)


def digest(experiment: Any) -> str:
    """A SHA-256 of all arrays of an Experiment, in order."""
    import jax

    found = hashlib.sha256()
    for leaf in jax.tree.leaves(experiment):
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        )
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        found.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


def rows_of(trainer: Any) -> str:
    return json.dumps(trainer.history.rows, default=lambda array: array.tolist())


def train(framework: str, folder: Path, kill_at: int) -> dict[str, Any]:
    """Trains, or resumes, and dies at a step."""
    import solstice

    class Dies(solstice.Callback):
        def on_step_end(self, record: solstice.Record) -> None:
            if record.mode == "train" and record.step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    saver = solstice.callbacks.Checkpoint(folder, every=EVERY, every_epochs=None, keep=4)
    trainer = solstice.Trainer([saver, Dies()])
    trainer.fit(make(framework), data(), [(X, Y)], num_epochs=EPOCHS, resume="last")
    return {}


def note(framework: str) -> dict[str, Any]:
    """The digests of all steps of a run without a checkpoint, and its rows."""
    import solstice

    found: dict[int, str] = {}

    class Notes(solstice.Callback):
        modes, needs = ("train",), ("experiment",)

        def on_step_end(self, record: solstice.Record) -> None:
            found[record.step] = digest(record.experiment)

    trainer = solstice.Trainer([Notes()])
    trainer.fit(make(framework), data(), [(X, Y)], num_epochs=EPOCHS)
    return {"steps": found, "rows": rows_of(trainer)}


def visit(framework: str, folder: Path, steps: list[int]) -> dict[str, Any]:
    import solstice

    return {
        str(step): digest(
            solstice.at(folder, step=step, experiment=make(framework), train_ds=data())
        )
        for step in steps
    }


def branch(framework: str, folder: Path, steps: list[int]) -> dict[str, Any]:
    """The last digest and the rows of branches without a change."""
    import solstice

    found: dict[str, Any] = {}
    for step in steps:
        place = folder.parent / f"branch-{step}"
        trainer = solstice.Trainer([solstice.callbacks.Checkpoint(place)])
        last = trainer.fit(
            make(framework),
            data(),
            [(X, Y)],
            num_epochs=EPOCHS,
            resume=folder,
            at_step=step,
            branch=place,
        )
        changes = (solstice.runs.read(place).parent or {})["changes"]
        found[str(step)] = [digest(last), rows_of(trainer), changes]
    return found


WORK = {"train": train, "note": note, "visit": visit, "branch": branch}


def in_process(work: str, *arguments: Any) -> Any:
    """The result of a function in another process; None if it was killed."""
    command = [sys.executable, __file__, "--work", json.dumps([work, *arguments])]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **CACHE}
    )
    if done.returncode == -signal.SIGKILL:
        return None
    done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


def study(framework: str, steps: list[int], branches: list[int]) -> int:
    """The number of differences."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(Path(temporary) / "a")
        CACHE["JAX_COMPILATION_CACHE_DIR"] = str(Path(temporary) / "compiled")
        CACHE["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        for kill_at in (*KILLS, 0):
            ended = in_process("train", framework, folder, kill_at)
            assert (ended is None) == (kill_at > 0)
        truth = in_process("note", framework)
        visited = in_process("visit", framework, folder, steps)
        branched = in_process("branch", framework, folder, branches)
    wrong = [step for step in steps if visited[str(step)] != truth["steps"][str(step)]]
    expected = [truth["steps"][str(STEPS)], truth["rows"], []]
    others = [step for step in branches if branched[str(step)] != expected]
    print(f"{framework}: {len(steps) - len(wrong)} of {len(steps)} steps have the bits of the run")
    print(f"{framework}: {len(branches) - len(others)} of {len(branches)} branches are the run")
    print(f"{framework}: differ: {wrong}, {others}" if wrong or others else "", end="", flush=True)
    return len(wrong) + len(others)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work, framework, *rest = json.loads(options.work)
        arguments = [Path(rest[0]), *rest[1:]] if rest else []
        print(json.dumps(WORK[work](framework, *arguments)))
        return 0
    rng, failed = np.random.default_rng(1), 0
    counts = (3, 3, 3) if options.quick else (34, 33, 33)
    for framework, count in zip(FRAMEWORKS, counts, strict=True):
        steps = sorted(map(int, rng.choice(STEPS, count, replace=False) + 1))
        failed += study(framework, steps, steps[:: max(count // 4, 1)][:5])
    print(f"{failed} differ" if failed else "all equal")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
