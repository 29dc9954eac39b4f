"""One process of a run on a mesh: `python mesh_train.py FOLDER LAYOUT PORT INDEX KEEP [POINT N]`.

The run has Dropout, momentum, arrays that are split over the processes, a history and a validation.
It is resumed if it was begun before. The first process writes `result.json` at its end. With a
point, the process kills itself when it comes to it for the n-th time.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import solstice
from solstice import distributed
from solstice.callbacks import Checkpoint, History
from solstice.checkpoint import _orbax, _peers, _save

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8 * 24 + 5, 8)).astype(np.float32)
Y = (np.abs(X[:, 0]) + X[:, 1] > 1).astype(np.int32)
EPOCHS = 6
TIMEOUT = 10
"""Seconds after which a process ends when another one is dead."""


@dataclass(frozen=True)
class Layout:
    """Processes, devices of each, and the sharding of the matrices."""

    processes: int
    devices: int
    spec: P


LAYOUTS = {
    "rows": Layout(2, 2, P("data")),
    "columns": Layout(2, 2, P(None, "data")),
    "two devices": Layout(2, 1, P("data")),
    "one process": Layout(1, 4, P("data")),
    "one device": Layout(1, 1, P()),
}
POINTS = {
    "a meeting": (solstice._agreement.Agreement, "_meet"),
    "a step of a save": (_peers.Peers, "_exchange"),
    "the start of Orbax": (_orbax, "begin"),
    "its commit, before the manifest": (_save, "seal"),
    "the manifest, before the rename": (_save, "_to_disk"),
    "a rename": (Path, "rename"),
    "the clean-up": (solstice.callbacks._saving.Saving, "_remove_old"),
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(4)(nn.Dropout(0.2, deterministic=not train)(x))


class Begun(solstice.Callback):
    """Says that training has begun: what is killed before that proves little."""

    every, phase, processes = None, solstice.Phase.SAVE, "all"

    def on_call_end(self, record):
        print("begun", flush=True)


def kill_at(point: str, number: int) -> None:
    """Kills this process when it comes to a point for the n-th time."""
    owner, name = POINTS[point]
    function: Callable[..., Any] = getattr(owner, name)
    left = number

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def digest(tree: object) -> str:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(distributed.gather(tree)):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        found.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return found.hexdigest()


def main(folder: Path, layout: Layout, keep: int) -> None:
    history = History(every=9)
    saves = Checkpoint(folder / "runs", every=5, keep=keep, monitor="val/loss")
    exp = solstice.ClassificationExperiment(
        Net(), optax.sgd(0.05, momentum=0.9), 4, sample_input=X[:1]
    )
    train_ds = solstice.data.batches((X, Y), 8, shuffle=True, seed=0)
    trainer = solstice.Trainer(
        [history, saves, Begun()],
        mesh="all",
        sharding={"*kernel*": layout.spec},
        steps_per_call=4,
    )
    val_ds = [(X[:64], Y[:64])]
    exp = trainer.fit(exp, train_ds, val_ds, num_epochs=EPOCHS, resume="last")
    result = {"sha256": digest(exp), "rows": history.rows}
    if jax.process_index() == 0:
        (folder / "result.new").write_text(json.dumps(result))
        (folder / "result.new").rename(folder / "result.json")


if __name__ == "__main__":
    place, name, port, index, keep, *point = sys.argv[1:]
    layout = LAYOUTS[name]
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={layout.devices}"
    if layout.processes > 1:
        address = f"127.0.0.1:{port}"
        distributed.initialize(address, layout.processes, int(index), timeout=TIMEOUT)
    if point:
        kill_at(point[0], int(point[1]))
    main(Path(place), layout, int(keep))
