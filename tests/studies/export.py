"""`python tests/studies/export.py`: exported runs give the bits of the Trainer, without the code.

For 5 frameworks x {dropout, BatchNorm, micro-batches}, a run of 100 steps is exported, trained by a
Trainer here, and trained by the file in another Python that has jax, numpy and flatbuffers alone.
Each array of the two final states must have the same bytes, and the metrics must agree.

`--alone PYTHON` is that Python; without it, an environment is made by `uv` or venv. `--next PYTHON`
is one with another JAX, which must read the files too: its bits may be others, so the numbers must
be close. `--quick` runs two frameworks for 20 steps.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH, FEATURES, CLASSES = 32, 64, 10

ALONE = """
import hashlib, io, json, sys, zipfile
import jax, numpy as np
from jax import export

for name in ("solstice", "equinox", "flax", "optax", "haiku"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} can be imported here")

path, data, out = sys.argv[1:]
archive = zipfile.ZipFile(path)
manifest = json.loads(archive.read("manifest.json"))
arrays = np.load(io.BytesIO(archive.read("state.npz")))
state = {
    name: arrays[f"arr_{index}"].view(spec["dtype"])
    for index, (name, spec) in enumerate(manifest["state"].items())
}
step, merge, compute = (
    jax.jit(export.deserialize(bytearray(archive.read(f"{jax.default_backend()}/{name}.stablehlo"))).call)
    for name in ("train_step", "train_merge", "train_compute")
)
batches, total = np.load(data), None
for x, y in zip(batches["x"], batches["y"]):
    state, metrics = step(state, {"0": x, "1": y})
    total = metrics if total is None else merge(total, metrics)
found = {name: np.asarray(array) for name, array in state.items()}
print(json.dumps({
    "jax": jax.__version__,
    "digests": {n: hashlib.sha256(x.tobytes()).hexdigest() for n, x in found.items()},
    "metrics": {name: float(value) for name, value in compute(total).items()},
}))
"""
"""What a process without Solstice does; `docs/howto/export.md` has the lines."""


def linen(norm: bool, rate: float) -> Any:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.Dense(32)(x)
            x = nn.BatchNorm(not train)(x) if norm else x
            return nn.Dense(CLASSES)(nn.Dropout(rate, deterministic=not train)(nn.relu(x)))

    return Net()


def nnx(norm: bool, rate: float) -> Any:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(FEATURES, 32, rngs=rngs)
            self.norm = nnx.BatchNorm(32, rngs=rngs) if norm else None
            self.dropout = nnx.Dropout(rate, rngs=rngs)
            self.last = nnx.Linear(32, CLASSES, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.first(x)
            x = self.norm(x) if self.norm is not None else x
            return self.last(self.dropout(nnx.relu(x)))

    return Net(nnx.Rngs(0))


def haiku(norm: bool, rate: float) -> Any:
    import haiku as hk
    import jax

    def net(x: Any, is_training: bool) -> Any:
        x = hk.Linear(32)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training) if norm else x
        x = jax.nn.relu(x)
        x = hk.dropout(hk.next_rng_key(), rate, x) if is_training and rate else x
        return hk.Linear(CLASSES)(x)

    return hk.transform_with_state(net)


def stax(norm: bool, rate: float) -> Any:
    from jax.example_libraries import stax

    from solstice.compat import StaxModel

    def net(mode: str) -> Any:
        layers = [stax.Dense(32), *([stax.BatchNorm(axis=(0,))] if norm else []), stax.Relu]
        layers += [stax.Dropout(1 - rate, mode)] if rate else []
        return stax.serial(*layers, stax.Dense(CLASSES))

    return StaxModel(net)


def equinox(norm: bool, rate: float) -> Any:
    import equinox as eqx
    import jax

    class Net(eqx.Module):
        first: Any
        norm: Any
        dropout: Any
        last: Any

        def __init__(self) -> None:
            one, two = jax.random.split(jax.random.key(0))
            self.first = eqx.nn.Linear(FEATURES, 32, key=one)
            self.norm = eqx.nn.BatchNorm(32, "batch", mode="batch") if norm else None
            self.dropout = eqx.nn.Dropout(rate)
            self.last = eqx.nn.Linear(32, CLASSES, key=two)

    class Stateless(Net):
        def __call__(self, x: Any, *, key: Any = None) -> Any:
            return self.last(self.dropout(jax.nn.relu(self.first(x)), key=key))

    class Stateful(Net):
        def __call__(self, x: Any, state: Any, *, key: Any = None) -> Any:
            x, state = self.norm(self.first(x), state)
            return self.last(self.dropout(jax.nn.relu(x), key=key)), state

    return eqx.nn.make_with_state(Stateful)() if norm else Stateless()


FRAMEWORKS: dict[str, Callable[[bool, float], Any]] = {
    "linen": linen,
    "nnx": nnx,
    "haiku": haiku,
    "stax": stax,
    "equinox": equinox,
}
KINDS = {"dropout": (False, 0.3, 1), "BatchNorm": (True, 0.0, 1), "micro-batches": (False, 0.3, 4)}


def reference(folder: Path, framework: str, kind: str, data: Any) -> dict[str, Any]:
    """Exports the run, and trains it by a Trainer: the digests of its arrays, and its metrics."""
    import hashlib

    import jax
    import optax

    import solstice

    norm, rate, micro_batches = KINDS[kind]
    exp = solstice.ClassificationExperiment(
        FRAMEWORKS[framework](norm, rate),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3)),
        num_classes=CLASSES,
        micro_batches=micro_batches,
    )
    batches = [*zip(data["x"], data["y"], strict=True)]
    solstice.export(exp, batches[0], folder / f"{framework}-{kind}.zip")
    trainer = solstice.Trainer()
    trained = trainer.fit(exp, batches, num_epochs=1)
    leaves = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(trained)
        if isinstance(x, jax.Array | np.ndarray)
    ]
    found = [np.asarray(x) for x in leaves]
    return {
        "digests": sorted(hashlib.sha256(x.tobytes()).hexdigest() for x in found),
        "loss": trainer.history.rows[-1]["loss"],
    }


def alone(python: str, path: Path, data: Path) -> dict[str, Any]:
    """Trains the file in another Python."""
    env = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu", "HOME": str(Path.home())}
    command = [python, "-c", ALONE, str(path), str(data), ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout)


def environment(folder: Path) -> str:
    """A Python with jax, numpy and flatbuffers alone, of the versions here."""
    import jax

    python = folder / "alone" / "bin" / "python"
    versions = [f"jax=={jax.__version__}", f"numpy=={np.__version__}", "flatbuffers"]
    if shutil.which("uv"):
        make = ["uv", "venv", "-q", "-p", sys.executable, str(python.parents[1])]
        install = ["uv", "pip", "install", "-q", "-p", str(python), *versions]
    else:
        make = [sys.executable, "-m", "venv", str(python.parents[1])]
        install = [str(python), "-m", "pip", "install", "-q", *versions]
    for command in (make, install):
        subprocess.run(command, check=True)
    return str(python)


def compare(there: dict[str, Any], here: dict[str, Any], *, same_bits: bool) -> str:
    """The verdict in words; it starts with "ok" or "FAILED"."""
    if "error" in there:
        return f"FAILED: {there['error']}"
    if same_bits:
        differing = len({*there["digests"].values()} ^ {*here["digests"]})
        if differing:
            return f"FAILED: {differing} digests differ"
        is_close = abs(there["metrics"]["loss"] - here["loss"]) < 1e-6 * abs(here["loss"])
        return "ok, equal bits" if is_close else "FAILED: the losses differ"
    # Not of each array: a bias before BatchNorm has a gradient of rounding errors alone.
    difference = abs(there["metrics"]["loss"] - here["loss"]) / abs(here["loss"])
    return f"{'ok' if difference < 1e-4 else 'FAILED'}, relative difference {difference:.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--alone", metavar="PYTHON")
    parser.add_argument("--next", metavar="PYTHON", action="append", default=[])
    parser.add_argument("--only", choices=FRAMEWORKS, action="append", help="a framework")
    options = parser.parse_args()
    steps = 20 if options.quick else 100
    frameworks = options.only or (["linen", "equinox"] if options.quick else [*FRAMEWORKS])
    rng = np.random.default_rng(0)
    data = {
        "x": rng.normal(size=(steps, BATCH, FEATURES)).astype(np.float32),
        "y": rng.integers(0, CLASSES, (steps, BATCH)).astype(np.int32),
    }
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "data.npz", **data)
        python = options.alone or environment(folder)
        for framework in frameworks:
            for kind in KINDS:
                here = reference(folder, framework, kind, data)
                path = folder / f"{framework}-{kind}.zip"
                for other in (python, *options.next):
                    there = alone(other, path, folder / "data.npz")
                    verdict = compare(there, here, same_bits=other == python)
                    failed += verdict.startswith("FAILED")
                    version = there.get("jax", other)
                    print(f"{framework:8} {kind:14} {steps} steps, jax {version}: {verdict}")
                    sys.stdout.flush()
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
